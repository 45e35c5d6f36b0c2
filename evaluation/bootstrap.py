"""Confidence bounds of a score by the bootstrap: its items are drawn again with replacement.

The bounds are BCa (bias-corrected and accelerated; Efron 1987, doi:10.1080/01621459.1987.10478410).
A percentile interval takes its ends from the resamples as they are, and how often it holds is off
by an error that shrinks as 1 / sqrt(n); BCa shifts them by the bias and the skew of the score,
which perplexities and shares near 0 or 1 have, and its error shrinks as 1 / n.

Items of one source, such as answers to one prompt, are drawn together (the cluster bootstrap), for
they are not independent. A score is a function of how often each source counts: once each is the
score itself, 0 to several times is a resample, and 0 for one of them leaves that source out.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Self

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Score = Callable[[Floats], Floats]
"""From how often each source counts, [..., K], to the score of each such set, [...]."""

NUM_RESAMPLES = 2000
SEED = 1234
"""Of the draws: the same items get the same bounds everywhere."""

_BLOCK = 1 << 21
"""Numbers drawn at a time, which bounds the memory."""
_SHOWN_SHARE = 0.1


def fewest_sources(confidence: float) -> int:
    """Return how many sources a bound with this confidence asks for.

    With fewer, something that concerns a tenth of all sources may well not occur among them: that
    it does has a lower probability than the confidence. Of 95 % that is 29 sources.
    """
    return math.ceil(math.log(1 - confidence) / math.log(1 - _SHOWN_SHARE))


@dataclass(frozen=True)
class Estimate:
    """A score, and what its confidence bounds come from."""

    score: Score
    num_sources: int
    limits: tuple[float, float] | None = None
    """The least and the most that an item can score; None where there is no such limit."""
    smallest_group: int | None = None
    """Sources of the smallest group of items whose share alone can move the score; None where no
    group can, but only all of them."""

    @classmethod
    def of_sums(
        cls,
        of_sums: Callable[[Floats], Floats],
        sums_KC: Floats,
        limits: tuple[float, float] | None = None,
        smallest_group: int | None = None,
    ) -> Self:
        """Return a score that is a function of sums over items, [..., C].

        Args:
            of_sums: The function.
            sums_KC: Sums over the items of each source.
            limits: See the field.
            smallest_group: See the field.
        """
        return cls(lambda counts: of_sums(counts @ sums_KC), len(sums_KC), limits, smallest_group)

    @property
    def value(self) -> float:
        """The score of all items; NaN without any."""
        return float(self.score(np.ones(self.num_sources)))

    def interval(self, confidence: float) -> tuple[float, float]:
        """Return the bounds between which the score lies with this confidence."""
        tail = (1 - confidence) / 2
        low, high = self.bounds([tail, 1 - tail])
        return low, high

    def bounds(self, levels: Sequence[float]) -> list[float]:
        """Return the values below which the score lies with the given probabilities.

        Where all sources score alike the resamples do too, and say nothing. A share p of other
        sources goes unseen in K draws with probability (1 - p)^K; the bound is what the score
        would be if so many of them as that level leaves lay at the limit (for a share of 0 or 1
        these are the exact bounds of Clopper and Pearson).

        Args:
            levels: Probabilities between 0 and 1.

        Returns:
            A bound a level; NaN with fewer than two sources, or where a score is NaN.
        """
        value = self.value
        if self.num_sources < 2 or not math.isfinite(value):
            return [math.nan] * len(levels)
        left_out_K = _blockwise(
            lambda rows: self.score(1 - np.eye(len(rows), self.num_sources, rows.start)),
            self.num_sources,
            self.num_sources,
        )
        # Equal sources differ by what rounding leaves.
        if np.ptp(left_out_K) <= 1e-12 * max(1.0, abs(value)):
            return [self._unseen_bound(level) for level in levels]
        resamples_R = resampled(self.score, self.num_sources)
        bounds: list[float] = bca_bounds(value, resamples_R, left_out_K, levels).tolist()
        return bounds

    def _unseen_bound(self, level: float) -> float:
        value = self.value
        if self.limits is None:
            return value
        unseen: float = 1 - min(level, 1 - level) ** (1 / (self.smallest_group or self.num_sources))
        return value + unseen * (self.limits[int(level > 0.5)] - value)


def resampled(
    score: Score, num_sources: int, *, num_resamples: int = NUM_RESAMPLES, seed: int = SEED
) -> Floats:
    """Return a score of resamples: as many sources, drawn with replacement; [num_resamples]."""
    draws = np.random.default_rng(seed)

    def of_rows(rows: range) -> Floats:
        drawn_RK = draws.integers(num_sources, size=(len(rows), num_sources))
        drawn_RK += num_sources * np.arange(len(rows))[:, None]
        counts = np.bincount(drawn_RK.ravel(), minlength=drawn_RK.size)
        return score(counts.reshape(drawn_RK.shape).astype(np.float64))

    return _blockwise(of_rows, num_resamples, num_sources)


def _blockwise(of_rows: Callable[[range], Floats], num_rows: int, width: int) -> Floats:
    """Return a function of rows in their order, of so many at a time as fit the memory."""
    size = max(1, _BLOCK // width)
    blocks = [range(start, min(start + size, num_rows)) for start in range(0, num_rows, size)]
    return np.concatenate([of_rows(rows) for rows in blocks])


def bca_bounds(
    value: float, resamples_R: Floats, left_out_K: Floats, levels: Sequence[float]
) -> Floats:
    """Return the BCa bounds of a score.

    Efron and Tibshirani, An Introduction to the Bootstrap (1993): eq. 14.10 with the bias of
    eq. 14.14 and the acceleration of eq. 14.15.

    Args:
        value: The score.
        resamples_R: The score of each resample.
        left_out_K: The score without each of the sources, which must not all be alike.
        levels: Probabilities of the score lying below each bound.
    """
    normal = NormalDist()
    below = float(np.mean(resamples_R < value) + np.mean(resamples_R <= value)) / 2
    half_a_draw = 0.5 / len(resamples_R)
    bias = normal.inv_cdf(min(max(below, half_a_draw), 1 - half_a_draw))
    influence_K = left_out_K.mean() - left_out_K
    acceleration = float(np.sum(influence_K**3) / (6 * np.sum(influence_K**2) ** 1.5))
    adjusted = []
    for level in levels:
        shifted = bias + normal.inv_cdf(level)
        adjusted.append(normal.cdf(bias + shifted / (1 - acceleration * shifted)))
    bounds: Floats = np.quantile(resamples_R, adjusted)
    return bounds
