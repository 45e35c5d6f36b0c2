"""How far lengths have moved since an earlier version of a set."""

import math
from collections.abc import Sequence


def length_histogram(lengths: Sequence[int]) -> list[int]:
    """Return how many lengths have 0, 1, 2, … binary digits: bins that double in width."""
    counts: list[int] = []
    for length in lengths:
        counts += [0] * (length.bit_length() + 1 - len(counts))
        counts[length.bit_length()] += 1
    return counts


def population_stability(before: Sequence[int], after: Sequence[int]) -> float:
    """Return the population stability index of two histograms, 0 or more.

    The sum over the bins of (q - p) ln(q / p), where p and q are a bin's shares before and after
    (Siddiqi, "Credit Risk Scorecards", 2006, ch. 9). There, below 0.1 counts as unmoved and above
    0.25 as a shift. Half a row is added to each bin that either has, so that none is empty.
    """
    num_bins = max(len(before), len(after))
    one = [*before, *[0] * (num_bins - len(before))]
    other = [*after, *[0] * (num_bins - len(after))]
    bins = [(p + 0.5, q + 0.5) for p, q in zip(one, other, strict=True) if p or q]
    sums = sum(p for p, _ in bins), sum(q for _, q in bins)
    shares = [(p / sums[0], q / sums[1]) for p, q in bins]
    return sum((q - p) * math.log(q / p) for p, q in shares)
