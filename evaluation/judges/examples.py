"""Labelled texts in the formats of the benchmarks: ToxiGen, TruthfulQA's judge samples, HateCheck.

The statements of ToxiGen and HateCheck hold hateful text; they are data to be judged.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from alignflow.data_validation.text import normalised, prompt_key
from alignflow.errors import DataError
from alignflow.evaluation.judges.config import JudgeTask
from alignflow.evaluation.judges.statement import Statement, clean_text
from alignflow.evaluation.suites.files import Record, read_records
from alignflow.evaluation.suites.toxigen import ToxiGen
from alignflow.evaluation.suites.truthfulqa import TruthfulQA

_JUDGE_PROMPT = re.compile(r"Q: (?P<question>.*?)\nA: (?P<answer>.*)\n(?:True|Helpful):", re.DOTALL)


@dataclass(frozen=True)
class Example:
    """A statement with its label."""

    statement: Statement
    label: bool
    """Whether it is toxic, true or informative."""
    source: str
    """What it comes from; examples of one source are on one side of every split."""
    groups: tuple[str, ...] = ()
    """Groups of people that it is about."""


@dataclass(frozen=True)
class ExampleSet:
    """Examples without repetitions, and what was left out."""

    examples: list[Example]
    num_repeated: int
    """Examples that equal another one of the same source but for case and punctuation."""
    num_contradictory: int
    """Those of them that went, all alike, because their labels differ."""
    num_references: int = 0
    """Answers that stand in the benchmark itself, whose label a judge need not tell."""


@dataclass(frozen=True)
class HateCheckCase:
    """One case of HateCheck."""

    statement: Statement
    label: bool
    functionality: str
    """What it tests, such as `counter_quote_nh`."""
    group: str
    """Whom it is about; empty where nobody."""


References = dict[str, tuple[tuple[str, ...], tuple[str, ...]]]
"""True and false answers by question, in its normal form."""


def labelled_examples(
    task: JudgeTask, path: Path, references: References | None = None
) -> ExampleSet:
    """Read the labelled texts of a judge.

    Raises:
        DataError: Names file, item and field.
    """
    return toxicity_examples(path) if task == "toxicity" else answer_examples(path, references)


def toxicity_examples(path: Path) -> ExampleSet:
    """Read ToxiGen's annotated statements.

    Raises:
        DataError: Names file, item and field.
    """
    return _distinct(
        Example(Statement(text), bool(item.label), source=prompt_key(text), groups=item.groups)
        for item in ToxiGen.read(path).items
        if (text := clean_text(item.text))
    )


def answer_examples(path: Path, references: References | None) -> ExampleSet:
    r"""Read a judge sample of TruthfulQA: prompts `Q: …\nA: …\nTrue:`, completions yes or no.

    Args:
        path: JSON lines.
        references: What the benchmark knows of its questions. Answers that stand there are left
            out: their labels would be found by looking them up.

    Raises:
        DataError: Names file, item and field.
    """
    examples = [_answer(record, references or {}) for record in read_records(path)]
    judged = [example for example in examples if not _is_reference(example.statement)]
    found = _distinct(judged)
    return ExampleSet(
        found.examples,
        found.num_repeated,
        found.num_contradictory,
        num_references=len(examples) - len(judged),
    )


def read_references(path: Path) -> References:
    """Read the true and false answers of TruthfulQA's questions.

    Raises:
        DataError: Names file, item and field.
    """
    references: References = {}
    for item in TruthfulQA.read(path).items:
        answers = {
            wanted: [a for a, label in item.mc2.items() if label == wanted] for wanted in (0, 1)
        }
        references[prompt_key(item.question)] = (tuple(answers[1]), tuple(answers[0]))
    return references


def read_hatecheck(path: Path) -> list[HateCheckCase]:
    """Read HateCheck's `test_suite_cases.csv` (arXiv:2012.15606).

    Raises:
        DataError: Names file, item and field.
    """
    return [_hatecheck_case(record) for record in read_records(path)]


def _distinct(examples: Iterable[Example]) -> ExampleSet:
    """Keep the first of equal examples, and none where their labels differ."""
    alike: dict[tuple[str, str], list[Example]] = {}
    for example in examples:
        key = (example.source, prompt_key(example.statement.text))
        alike.setdefault(key, []).append(example)
    kept = [group[0] for group in alike.values() if len({e.label for e in group}) == 1]
    num_contradictory = sum(
        len(group) for group in alike.values() if len({e.label for e in group}) > 1
    )
    num_read = sum(map(len, alike.values()))
    return ExampleSet(kept, num_read - len(kept) - num_contradictory, num_contradictory)


def _answer(record: Record, references: References) -> Example:
    found = _JUDGE_PROMPT.fullmatch(record.text("prompt"))
    if found is None:
        raise record.error(
            "prompt", "must read 'Q: …', 'A: …' and 'True:' or 'Helpful:', a line each"
        )
    completion = record.text("completion").strip()
    if completion not in ("yes", "no"):
        raise record.error("completion", f"must be 'yes' or 'no', not {completion!r}")
    source = prompt_key(found["question"])
    if references and source not in references:
        raise record.error("prompt", "asks a question that the references don't know")
    true, false = references.get(source, ((), ()))
    answer, question = clean_text(found["answer"]), clean_text(found["question"])
    statement = Statement(answer, true, false, question)
    return Example(statement, completion == "yes", source)


def _is_reference(statement: Statement) -> bool:
    known: Sequence[str] = (*statement.true_references, *statement.false_references)
    return normalised(statement.text) in map(normalised, known)


def _hatecheck_case(record: Record) -> HateCheckCase:
    label = record.text("label_gold")
    if label not in ("hateful", "non-hateful"):
        raise record.error("label_gold", f"must be 'hateful' or 'non-hateful', not {label!r}")
    return HateCheckCase(
        Statement(clean_text(record.text("test_case"))),
        label == "hateful",
        functionality=record.text("functionality"),
        group=record.values.get("target_ident") or "",
    )


def check_learnable(found: ExampleSet, path: Path, *, num_folds: int) -> None:
    """Stop where a fold could lack one of the labels.

    Raises:
        DataError: There are fewer sources of a label than folds.
    """
    for label in (True, False):
        sources = {example.source for example in found.examples if example.label == label}
        if len(sources) < num_folds:
            raise DataError(
                f"{path}: {len(sources)} different texts are labelled "
                f"{'yes' if label else 'no'}; {num_folds} folds take at least as many of each."
            )
