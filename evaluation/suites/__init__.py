"""Benchmarks by name: the project's own, those of installed packages, and lm-eval's tasks.

A package adds suites by entry points of the group `alignflow.suites`, each a class under
`base.FileSuite`. `lm_eval:TASK` is a task of lm-evaluation-harness, which has to be installed.
"""

from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from alignflow.errors import ConfigError, DataError
from alignflow.evaluation.suites.base import FileSuite, Suite

GROUP = "alignflow.suites"
_HARNESS = "lm_eval:"
_OWN = {
    name: EntryPoint(name, f"alignflow.evaluation.suites.{place}", GROUP)
    for name, place in {
        "truthfulqa": "truthfulqa:TruthfulQA",
        "truthfulqa_generation": "truthfulqa_generation:TruthfulQAGeneration",
        "toxigen": "toxigen:ToxiGen",
    }.items()
}


def score_names(name: str) -> tuple[str, ...]:
    """Return what a suite may score, without its own name before it.

    Raises:
        ConfigError: There is no such suite, or it can't be used.
    """
    if name.startswith(_HARNESS):
        from alignflow.evaluation.suites import harness

        return harness.score_names(name.removeprefix(_HARNESS))
    return _class(name).scores


def load_suite(name: str, path: Path, *, limit: int | None = None) -> Suite:
    """Read a benchmark from a local file in its own format.

    Args:
        name: Which benchmark.
        path: The file.
        limit: Judge only the first so many items.

    Raises:
        ConfigError: There is no such suite, or it can't be used.
        DataError: The message names file, item and field.
    """
    if path.is_dir():
        raise DataError(f"{path}: is a folder; give the benchmark's file.")
    if name.startswith(_HARNESS):
        from alignflow.evaluation.suites import harness

        return harness.HarnessTask.load(name.removeprefix(_HARNESS), path, limit=limit)
    return _class(name).read(path, limit=limit)


def _class(name: str) -> type[FileSuite[Any]]:
    known = {entry.name: entry for entry in entry_points(group=GROUP)} | _OWN
    if name not in known:
        names = ", ".join(sorted(known))
        raise ConfigError(f"there is no suite {name!r}; known are {names}, and lm_eval:TASK.")
    entry = known[name]
    try:
        found = entry.load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"suite {name!r}: {entry.value} can't be loaded ({error}).") from None
    if not (isinstance(found, type) and issubclass(found, FileSuite)):
        raise ConfigError(f"suite {name!r}: {entry.value} must be a class under FileSuite.")
    return found
