"""Benchmarks by name: the project's own, those of installed packages, and lm-eval's tasks.

A package adds suites by entry points of the group `alignflow.suites`, each a class under
`base.FileSuite`. `lm_eval:TASK` is a task of lm-evaluation-harness, which has to be installed.
"""

from collections.abc import Collection, Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignflow.errors import ConfigError, DataError
from alignflow.evaluation.judges.config import JudgeTask
from alignflow.evaluation.suites.base import FileSuite, Suite

if TYPE_CHECKING:
    from alignflow.evaluation.judges.judge import Judge

GROUP = "alignflow.suites"
_HARNESS = "lm_eval:"
_OWN = {
    name: EntryPoint(name, f"alignflow.evaluation.suites.{place}", GROUP)
    for name, place in {
        "truthfulqa": "truthfulqa:TruthfulQA",
        "truthfulqa_generation": "truthfulqa_generation:TruthfulQAGeneration",
        "toxigen": "toxigen:ToxiGen",
        "toxigen_prompts": "toxigen_prompts:ToxiGenPrompts",
        "refusals": "refusals:Refusals",
    }.items()
}


def asked_judges(name: str) -> tuple[JudgeTask, ...]:
    """Return what judges a suite asks.

    Raises:
        ConfigError: There is no such suite.
    """
    return () if name.startswith(_HARNESS) else _class(name).asks


def missing_judges(name: str, judges: Collection[JudgeTask]) -> list[JudgeTask]:
    """Return what judges a suite lacks; without any, one that has other scores lacks none.

    Raises:
        ConfigError: There is no such suite.
    """
    asked = asked_judges(name)
    if not judges and asked and _class(name).judged_scores:
        return []
    return [task for task in asked if task not in judges]


def check_judges(name: str, judges: Collection[JudgeTask]) -> None:
    """Check that a suite has the judges that it asks, and no others.

    Raises:
        ConfigError: It hasn't, or there is no such suite.
    """
    asked = asked_judges(name)
    for task in judges:
        if task not in asked:
            raise ConfigError(f"judges.{task} does nothing in suite {name}.")
    for task in missing_judges(name, judges):
        raise ConfigError(f"suite {name} needs a judge: give judges.{task}.")


def score_names(name: str, *, are_judged: bool = False) -> tuple[str, ...]:
    """Return what a suite may score, without its own name before it.

    Args:
        name: Which suite.
        are_judged: Whether it has its judges.

    Raises:
        ConfigError: There is no such suite, or it can't be used.
    """
    if name.startswith(_HARNESS):
        from alignflow.evaluation.suites import harness

        return harness.score_names(name.removeprefix(_HARNESS))
    found = _class(name)
    return (*found.scores, *found.judged_scores) if are_judged else found.scores


def load_suite(
    name: str,
    path: Path,
    *,
    limit: int | None = None,
    judges: "Mapping[JudgeTask, Judge] | None" = None,
) -> Suite:
    """Read a benchmark from a local file in its own format.

    Args:
        name: Which benchmark.
        path: The file.
        limit: Judge only the first so many items.
        judges: Who says what answers are worth; a suite without its own is good for reading only.

    Raises:
        ConfigError: There is no such suite, or it can't be used.
        DataError: The message names file, item and field.
    """
    if path.is_dir():
        raise DataError(f"{path}: is a folder; give the benchmark's file.")
    if name.startswith(_HARNESS):
        from alignflow.evaluation.suites import harness

        return harness.HarnessTask.load(name.removeprefix(_HARNESS), path, limit=limit)
    return _class(name).read(path, limit=limit, judges=judges)


def _added() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def _class(name: str) -> type[FileSuite[Any]]:
    # One of the project's own needs no look at every installed package, which takes its time.
    entry = _OWN.get(name) or _added().get(name)
    if entry is None:
        names = ", ".join(sorted({**_added(), **_OWN}))
        raise ConfigError(f"there is no suite {name!r}; known are {names}, and lm_eval:TASK.")
    try:
        found = entry.load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"suite {name!r}: {entry.value} can't be loaded ({error}).") from None
    if not (isinstance(found, type) and issubclass(found, FileSuite)):
        raise ConfigError(f"suite {name!r}: {entry.value} must be a class under FileSuite.")
    return found
