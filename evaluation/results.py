"""The files of an evaluation.

`scores.json`, `measures.json`, `items/<suite>.jsonl`, `samples.jsonl`.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from alignflow.evaluation.bootstrap import NUM_RESAMPLES, SEED
from alignflow.evaluation.measures import Measure, write_measures
from alignflow.evaluation.suites.base import SuiteResult

CONFIDENCE = 0.95
"""Of the intervals that are written beside the scores."""

T = TypeVar("T")


class Results:
    """Collects what suites return and writes it to the job's output folder.

    A score that is NaN or infinite is left out, so that a gate finds it missing; its name is kept.
    """

    def __init__(self, output: Path | None, *, limited: Sequence[str] = ()) -> None:
        """Take the folder, None on a rank whose results another one writes.

        Args:
            output: The folder.
            limited: The settings that kept items from being judged.
        """
        self._output = output
        self._limited = list(limited)
        self.num_items: dict[str, int] = {}
        self._measures: dict[str, Measure] = {}
        self._groups: dict[str, dict[str, Measure]] = {}
        self._weak_judges: dict[str, str] = {}

    @property
    def scores(self) -> dict[str, float]:
        """The scores that are numbers, by name."""
        values = {name: measure.value for name, measure in self._measures.items()}
        return {name: value for name, value in values.items() if math.isfinite(value)}

    def add(self, name: str, result: SuiteResult, num_items: int) -> None:
        """Take the result of a suite, and write its items if it has any.

        A second result under the same name adds its scores to those of the first.
        """
        self._measures |= prefixed(name, result.measures)
        self._groups |= prefixed(name, result.groups)
        self.num_items.setdefault(name, num_items)
        if result.items and self._output is not None:
            folder = self._output / "items"
            folder.mkdir(parents=True, exist_ok=True)
            write_jsonl(folder / f"{name}.jsonl", result.items)

    def distrust(self, name: str, reason: str) -> None:
        """Keep the scores of a suite from gating, for a reason in one sentence."""
        self._weak_judges[name] = reason

    def write(
        self, num_truncated: Mapping[str, int], num_left_out: Mapping[str, int] | None = None
    ) -> None:
        """Write `scores.json`, and what each item adds to each score: `measures.json`.

        Args:
            num_truncated: Sequences that were cut, by suite.
            num_left_out: Items that could not be judged, by suite.
        """
        if self._output is None:
            return
        scores = self.scores
        content = {
            "scores": scores,
            "intervals": {
                name: interval
                for name in scores
                if (interval := _interval(self._measures[name])) is not None
            },
            "groups": {
                name: {group: _described(measure) for group, measure in of_groups.items()}
                for name, of_groups in self._groups.items()
            },
            "statistics": {
                "method": "BCa bootstrap over sources",
                "confidence": CONFIDENCE,
                "num_resamples": NUM_RESAMPLES,
                "seed": SEED,
            },
            "num_items": self.num_items,
            "num_sources": {
                name: measure.estimate().num_sources for name, measure in self._measures.items()
            },
            "num_truncated": dict(num_truncated),
            "num_left_out": dict(num_left_out or {}),
            "limited": self._limited,
            "undefined": sorted(self._measures.keys() - scores.keys()),
            "weak_judges": self._weak_judges,
        }
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
        (self._output / "scores.json").write_text(f"{text}\n", encoding="utf-8")
        write_measures(self._output / "measures.json", self._measures)


def _described(measure: Measure) -> dict[str, Any]:
    value = measure.value
    return {
        "value": value if math.isfinite(value) else None,
        "interval": _interval(measure),
        "num_items": len(measure.items.ids),
    }


def _interval(measure: Measure) -> tuple[float, float] | None:
    """Return the score's confidence interval, None where it isn't known."""
    low, high = measure.estimate().interval(CONFIDENCE)
    return (low, high) if math.isfinite(low) and math.isfinite(high) else None


def prefixed(name: str, scores: Mapping[str, T]) -> dict[str, T]:
    """Return the scores under `name/`."""
    return {f"{name}/{score}": value for score, value in scores.items()}


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object a line; a number that JSON lacks becomes null."""
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(_jsonable(row), ensure_ascii=False, allow_nan=False) + "\n")


def _jsonable(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    return value
