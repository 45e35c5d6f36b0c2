"""Confidence bounds of a score by the bootstrap: its items are drawn again with replacement.

The bounds are BCa (bias-corrected and accelerated; Efron 1987, doi:10.1080/01621459.1987.10478410).
A percentile interval takes its ends from the resamples as they are; BCa shifts them by the skew of
the score, which perplexities and shares near 0 or 1 have, and is never worse by an order.

A score is a function of sums over its items. Items of one source, such as answers to one prompt,
are added up first and drawn together (the cluster bootstrap), for they are not independent.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Score = Callable[[Floats], Floats]
"""From sums over items, [..., C], to the score of each set of items, [...]."""

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
    sums_KC: Floats
    """Sums over the items of each source."""
    limits: tuple[float, float] | None
    """The least and the most that an item can score; None where there is no such limit."""

    @property
    def value(self) -> float:
        """The score of all items; NaN without any."""
        return float(self.score(self.sums_KC.sum(axis=0)))

    @property
    def num_sources(self) -> int:
        """What is drawn: sources, each with all its items."""
        return len(self.sums_KC)

    @property
    def has_spread(self) -> bool:
        """Whether sources differ, so that resamples do."""
        left_out_K = self.score(self.sums_KC.sum(axis=0) - self.sums_KC)
        # Equal sources differ by what rounding leaves.
        return bool(np.ptp(left_out_K) > 1e-12 * max(1.0, abs(self.value)))

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
        if self.num_sources < 2 or not np.isfinite(self.sums_KC).all():
            return [math.nan] * len(levels)
        if self.has_spread:
            return list(bca_bounds(self.score, self.sums_KC, levels))
        return [self._unseen_bound(level) for level in levels]

    def _unseen_bound(self, level: float) -> float:
        value = self.value
        if self.limits is None:
            return value
        unseen: float = 1 - min(level, 1 - level) ** (1 / self.num_sources)
        return value + unseen * (self.limits[int(level > 0.5)] - value)


def resampled_sums(
    sums_KC: Floats, *, num_resamples: int = NUM_RESAMPLES, seed: int = SEED
) -> Floats:
    """Return sums over as many sources as there are, drawn with replacement; [num_resamples, C]."""
    draws = np.random.default_rng(seed)
    num_sources = len(sums_KC)
    rows = max(1, _BLOCK // num_sources)
    return np.concatenate(
        [
            sums_KC[
                draws.integers(num_sources, size=(min(rows, num_resamples - start), num_sources))
            ].sum(axis=1)
            for start in range(0, num_resamples, rows)
        ]
    )


def bca_bounds(
    score: Score,
    sums_KC: Floats,
    levels: Sequence[float],
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = SEED,
) -> Floats:
    """Return the BCa bounds of a score.

    Efron and Tibshirani, An Introduction to the Bootstrap (1993): eq. 14.10 with the bias of
    eq. 14.14 and the acceleration of eq. 14.15, from the scores with one source left out.

    Args:
        score: From sums over sources to the score.
        sums_KC: Sums over the items of each source, which must not all score alike.
        levels: Probabilities of the score lying below each bound.
        num_resamples: How often the sources are drawn again.
        seed: Seed of the draws.
    """
    normal = NormalDist()
    total_C = sums_KC.sum(axis=0)
    resamples_R = score(resampled_sums(sums_KC, num_resamples=num_resamples, seed=seed))
    value = score(total_C)
    below = float(np.mean(resamples_R < value) + np.mean(resamples_R <= value)) / 2
    half_a_draw = 0.5 / num_resamples
    bias = normal.inv_cdf(min(max(below, half_a_draw), 1 - half_a_draw))
    left_out_K = score(total_C - sums_KC)
    influence_K = left_out_K.mean() - left_out_K
    acceleration = float(np.sum(influence_K**3) / (6 * np.sum(influence_K**2) ** 1.5))
    adjusted = []
    for level in levels:
        shifted = bias + normal.inv_cdf(level)
        adjusted.append(normal.cdf(bias + shifted / (1 - acceleration * shifted)))
    bounds: Floats = np.quantile(resamples_R, adjusted)
    return bounds
