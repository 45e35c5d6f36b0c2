"""Scores as what each item contributes to them, so that two models can be compared item by item.

An item is known by an id that its content determines, not its place in a file. A comparison of two
models takes the items that both were judged on; what makes an item easy or hard for both cancels.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from alignflow.evaluation import scorers
from alignflow.evaluation.bootstrap import Estimate, Floats

Statistic = Literal["mean", "perplexity", "macro_f1", "group_gap"]

_SCORES: dict[Statistic, Callable[[Floats], Floats]] = {
    "mean": scorers.ratio,
    "perplexity": scorers.perplexity,
    "macro_f1": scorers.macro_f1,
    "group_gap": scorers.group_gap,
}
_SHARE = (0.0, 1.0)


class Items(NamedTuple):
    """Which items were judged."""

    ids: tuple[str, ...]
    """Each another."""
    sources: tuple[str, ...]
    """What each item comes from, such as its prompt; items of one source are not independent."""

    @classmethod
    def of(cls, contents: Iterable[Any], sources: Iterable[Any] | None = None) -> Self:
        """Name items by their contents, JSON each; without sources, equal items are of one.

        The second of two equal items gets another id than the first.
        """
        names = [_fingerprint(content) for content in contents]
        counts: Counter[str] = Counter()
        ids = []
        for name in names:
            counts[name] += 1
            ids.append(name if counts[name] == 1 else f"{name}-{counts[name]}")
        of = names if sources is None else [_fingerprint(source) for source in sources]
        return cls(tuple(ids), tuple(of))

    def chosen(self, rows: Sequence[int]) -> Self:
        """Return some of the items, in the order of the rows."""
        return type(self)(
            tuple(self.ids[row] for row in rows), tuple(self.sources[row] for row in rows)
        )

    def source_sums(self, columns_NC: Floats) -> Floats:
        """Return the sums over the items of each source, sources in the order of their names."""
        names, source_N = np.unique(np.array(self.sources, dtype=str), return_inverse=True)
        sums_KC = np.zeros((len(names), columns_NC.shape[1]))
        np.add.at(sums_KC, source_N, columns_NC)
        return sums_KC


def _fingerprint(content: Any) -> str:
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Scored(Protocol):
    """A score of items that has confidence bounds."""

    @property
    def items(self) -> Items:
        """The items."""
        ...

    @property
    def value(self) -> float:
        """The score; NaN where it isn't defined."""
        ...

    def estimate(self) -> Estimate:
        """Return the score with what its confidence bounds come from."""
        ...


@dataclass(frozen=True)
class Measure:
    """One score of one model."""

    items: Items
    columns_NC: Floats
    """What each item adds to the sums that the score is a function of."""
    statistic: Statistic = "mean"
    limits: tuple[float, float] | None = None
    """The least and the most that an item can score; None where there is no such limit."""

    @classmethod
    def mean(cls, items: Items, values: ArrayLike, *, is_share: bool = False) -> Self:
        """Return the mean of a value an item; of a share, each lies in 0..1."""
        values_N = np.asarray(values, dtype=np.float64)
        columns_NC = np.stack([values_N, np.ones_like(values_N)], axis=1)
        return cls(items, columns_NC, limits=_SHARE if is_share else None)

    @classmethod
    def over_tokens(
        cls, items: Items, sums: ArrayLike, num_tokens: ArrayLike, statistic: Statistic = "mean"
    ) -> Self:
        """Return a mean over the tokens of all items, or the perplexity, from sums an item."""
        columns_NC = np.stack([np.asarray(sums), np.asarray(num_tokens)], axis=1)
        return cls(items, columns_NC.astype(np.float64), statistic)

    @classmethod
    def macro_f1(cls, items: Items, predictions: ArrayLike, labels: ArrayLike) -> Self:
        """Return the mean over classes of the F1 of predictions, which are class numbers."""
        columns_NC = scorers.hits_and_claims(predictions, labels)
        return cls(items, columns_NC, "macro_f1", _SHARE)

    @classmethod
    def group_gap(cls, items: Items, values: ArrayLike, groups: Sequence[str]) -> Self:
        """Return the largest mean of a group of items less the smallest, of values in 0..1.

        Args:
            items: The items.
            values: A value an item.
            groups: The group of each item.
        """
        return cls(items, scorers.grouped(values, groups), "group_gap", _SHARE)

    @property
    def value(self) -> float:
        """The score; NaN where it isn't defined."""
        return self.estimate().value

    def estimate(self) -> Estimate:
        """Return the score with what its confidence bounds come from."""
        sums_KC = self.items.source_sums(self.columns_NC)
        smallest = _smallest_group(self.statistic, sums_KC)
        return Estimate.of_sums(_SCORES[self.statistic], sums_KC, self.limits, smallest)

    def by_group(self, groups: Sequence[Sequence[str]]) -> dict[str, Self]:
        """Return the score within each group, by name in order.

        Args:
            groups: The groups of each item, which counts in every one of them.
        """
        rows: dict[str, list[int]] = {}
        for row, names in enumerate(groups):
            for name in names:
                rows.setdefault(name, []).append(row)
        return {name: self.chosen(rows[name]) for name in sorted(rows)}

    def chosen(self, rows: Sequence[int]) -> Self:
        """Return the same score of some of the items."""
        index_N = np.asarray(rows, dtype=np.int64)
        return replace(self, items=self.items.chosen(rows), columns_NC=self.columns_NC[index_N])

    def to_json(self) -> dict[str, Any]:
        """Return the measure as a JSON object; a number that JSON lacks becomes null."""
        return {
            "statistic": self.statistic,
            "limits": self.limits,
            "ids": self.items.ids,
            "sources": self.items.sources,
            "columns": [[_finite(value) for value in column] for column in self.columns_NC.T],
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Read what `to_json` made."""
        limits = content["limits"]
        return cls(
            Items(tuple(content["ids"]), tuple(content["sources"])),
            np.array(content["columns"], dtype=np.float64).T,
            content["statistic"],
            (limits[0], limits[1]) if limits else None,
        )


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


@dataclass(frozen=True)
class Comparison:
    """One score of two models over the items that both were judged on."""

    value: float
    other_value: float
    difference: Estimate
    """The first model's score less that of the other."""
    num_items: int
    num_only_first: int
    """Items that only the first model was judged on."""
    num_only_other: int


def compare(measure: Measure, other: Measure) -> Comparison:
    """Compare one score of two models, item by item.

    Items are drawn for both at once (the paired bootstrap), with the sources of the first.
    """
    row_of = {name: row for row, name in enumerate(other.items.ids)}
    rows = [row for row, name in enumerate(measure.items.ids) if name in row_of]
    here = measure.chosen(rows)
    there = replace(other.chosen([row_of[name] for name in here.items.ids]), items=here.items)
    width = here.columns_NC.shape[1]
    score, other_score = _SCORES[here.statistic], _SCORES[there.statistic]

    def difference(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        return score(sums[..., :width]) - other_score(sums[..., width:])

    columns_NC = np.concatenate([here.columns_NC, there.columns_NC], axis=1)
    limits = here.limits
    reach = (limits[0] - limits[1], limits[1] - limits[0]) if limits else None
    sums_KC = here.items.source_sums(columns_NC)
    smallest = _smallest_group(here.statistic, sums_KC)
    return Comparison(
        value=here.value,
        other_value=there.value,
        difference=Estimate.of_sums(difference, sums_KC, reach, smallest),
        num_items=len(rows),
        num_only_first=len(measure.items.ids) - len(rows),
        num_only_other=len(other.items.ids) - len(rows),
    )


def _smallest_group(statistic: Statistic, sums_KC: Floats) -> int | None:
    """Return the sources of the smallest group, where the score is one of groups."""
    if statistic != "group_gap":
        return None
    num_sources = np.count_nonzero(sums_KC[:, 1::2], axis=0)
    return int(num_sources[num_sources > 0].min(initial=len(sums_KC)))


def write_measures(path: Path, measures: Mapping[str, Measure]) -> None:
    """Write measures by name."""
    content = {name: measure.to_json() for name, measure in measures.items()}
    path.write_text(json.dumps(content, allow_nan=False) + "\n", encoding="utf-8")


def read_measures(path: Path) -> dict[str, Measure]:
    """Read what `write_measures` wrote."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return {name: Measure.from_json(measure) for name, measure in content.items()}
