"""The files of an evaluation.

`scores.json`, `resamples.json`, `items/<suite>.jsonl`, `samples.jsonl`.
"""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignflow.evaluation.scorers import prefixed, stderr
from alignflow.evaluation.suites.base import SuiteResult


class Results:
    """Collects what suites return and writes it to the job's output folder.

    A score that is NaN or infinite is left out, so that a gate finds it missing; its name is kept.
    """

    def __init__(self, output: Path) -> None:
        self._output = output
        self.scores: dict[str, float] = {}
        self.num_items: dict[str, int] = {}
        self._resamples: dict[str, NDArray[np.float64]] = {}
        self._groups: dict[str, dict[str, float]] = {}
        self._undefined: list[str] = []
        self._weak_judges: dict[str, str] = {}

    def add(self, name: str, result: SuiteResult, num_items: int) -> None:
        """Take the result of a suite, and write its items if it has any.

        A second result under the same name adds its scores to those of the first.
        """
        scores = prefixed(name, result.scores)
        self.scores |= _finite(scores)
        self._undefined += sorted(scores.keys() - _finite(scores).keys())
        for score, values in result.resamples.items():
            self._resamples[f"{name}/{score}"] = values
        for score, by_group in result.groups.items():
            self._groups[f"{name}/{score}"] = _finite(by_group)
        self.num_items.setdefault(name, num_items)
        if result.items:
            folder = self._output / "items"
            folder.mkdir(parents=True, exist_ok=True)
            write_jsonl(folder / f"{name}.jsonl", result.items)

    def distrust(self, name: str, reason: str) -> None:
        """Keep the scores of a suite from gating, for a reason in one sentence."""
        self._weak_judges[name] = reason

    def write(self, num_truncated: Mapping[str, int]) -> None:
        """Write `scores.json`, and what its standard errors come from: `resamples.json`."""
        content = {
            "scores": self.scores,
            "stderr": _finite({name: stderr(values) for name, values in self._resamples.items()}),
            "groups": self._groups,
            "num_items": self.num_items,
            "num_truncated": dict(num_truncated),
            "undefined": self._undefined,
            "weak_judges": self._weak_judges,
        }
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
        (self._output / "scores.json").write_text(f"{text}\n", encoding="utf-8")
        resamples = {name: values.tolist() for name, values in self._resamples.items()}
        text = json.dumps(_jsonable(resamples), allow_nan=False)
        (self._output / "resamples.json").write_text(f"{text}\n", encoding="utf-8")


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object a line; a number that JSON lacks becomes null."""
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(_jsonable(row), ensure_ascii=False, allow_nan=False) + "\n")


def _finite(scores: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in scores.items() if math.isfinite(value)}


def _jsonable(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    return value
