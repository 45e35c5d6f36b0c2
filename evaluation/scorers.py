"""What log-probabilities and predictions amount to: pure functions on plain arrays.

Log-probabilities are sums over the tokens of a continuation, in nats, unless a name says otherwise.
Every score is a mean over units (items, pairs, tokens), so its standard error comes from drawing
the units again with replacement.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Statistic = Callable[[NDArray[np.int64]], float]
"""A score as a function of the indices of the units it is computed from."""


def mc1(logprobs: Sequence[float], labels: Sequence[int]) -> float:
    """1 if the answer with the highest log-probability is true, else 0 (arXiv:2109.07958, MC1).

    Equal log-probabilities go to the first answer. NaN among them gives NaN.
    """
    scores_C = _checked(logprobs, labels)
    if np.isnan(scores_C).any():
        return math.nan
    return float(labels[int(np.argmax(scores_C))])


def mc2(logprobs: Sequence[float], labels: Sequence[int]) -> float:
    """Share of the probability mass that lies on true answers (arXiv:2109.07958, MC2)."""
    scores_C = _checked(logprobs, labels)
    # Subtracting the maximum changes no share and keeps long answers from underflowing to 0 / 0.
    mass_C = np.exp(scores_C - scores_C.max())
    return float(mass_C[np.asarray(labels) == 1].sum() / mass_C.sum())


def _checked(logprobs: Sequence[float], labels: Sequence[int]) -> NDArray[np.float64]:
    if len(logprobs) != len(labels) or not labels:
        raise ValueError(f"{len(logprobs)} log-probabilities for {len(labels)} labels")
    return np.asarray(logprobs, dtype=np.float64)


def accuracy(predictions: ArrayLike, labels: ArrayLike) -> float:
    """Share of predictions that equal their label; NaN without any."""
    return mean(np.asarray(predictions) == np.asarray(labels))


def macro_f1(predictions: ArrayLike, labels: ArrayLike) -> float:
    """Mean over classes of the harmonic mean of precision and recall.

    A class counts when it occurs among labels or predictions; one that is never right has F1 0.
    """
    predicted_N, true_N = np.asarray(predictions), np.asarray(labels)
    f1_by_class = []
    for label in np.union1d(predicted_N, true_N):
        num_hits = np.sum((predicted_N == label) & (true_N == label))
        num_claims = np.sum(predicted_N == label) + np.sum(true_N == label)
        f1_by_class.append(2 * num_hits / num_claims)
    return mean(f1_by_class)


def group_accuracy(
    predictions: Sequence[int], labels: Sequence[int], groups: Sequence[Sequence[str]]
) -> dict[str, float]:
    """Accuracy within each group, by name in order; an item counts in every group it belongs to."""
    hits: dict[str, list[bool]] = {}
    for prediction, label, names in zip(predictions, labels, groups, strict=True):
        for name in names:
            hits.setdefault(name, []).append(prediction == label)
    return {name: mean(hits[name]) for name in sorted(hits)}


def mean(values: ArrayLike) -> float:
    """Arithmetic mean; NaN without any value."""
    values_N = np.asarray(values, dtype=np.float64)
    return float(values_N.mean()) if values_N.size else math.nan


def ratio(totals: ArrayLike, counts: ArrayLike) -> float:
    """Sum of the totals over the sum of the counts; NaN where nothing is counted."""
    count = float(np.sum(counts))
    return float(np.sum(totals)) / count if count else math.nan


def perplexity(nll_sums: ArrayLike, num_tokens: ArrayLike) -> float:
    """Exponential of the mean negative log-likelihood of a token; infinity past float range."""
    mean_nll = ratio(nll_sums, num_tokens)
    try:
        return math.exp(mean_nll)
    except OverflowError:
        return math.inf


def implicit_margins(
    policy_chosen: ArrayLike,
    policy_rejected: ArrayLike,
    parent_chosen: ArrayLike,
    parent_rejected: ArrayLike,
    *,
    beta: float,
) -> NDArray[np.float64]:
    """Implicit reward of the chosen response less that of the rejected one, a value a pair.

    The implicit reward of a response is beta * (policy - parent), eq. 5 of arXiv:2305.18290; the
    term that depends on the prompt alone cancels.
    """
    chosen_B = np.asarray(policy_chosen, np.float64) - np.asarray(parent_chosen, np.float64)
    rejected_B = np.asarray(policy_rejected, np.float64) - np.asarray(parent_rejected, np.float64)
    return beta * (chosen_B - rejected_B)


def is_preferred(margins: ArrayLike) -> NDArray[np.float64]:
    """1 for each pair whose margin, chosen less rejected, is above 0, else 0; NaN stays.

    A margin of exactly 0 counts one half, as in the accuracy that training tells.
    """
    margins_B = np.asarray(margins, dtype=np.float64)
    return np.heaviside(margins_B, 0.5)


def resampled(
    statistic: Statistic, num_units: int, *, num_resamples: int = 500, seed: int = 1234
) -> NDArray[np.float64]:
    """A score over resamples of its units, drawn with replacement (the bootstrap).

    So many units are always drawn alike. The resamples of two models that were judged on the same
    items therefore pair up: the spread of their differences is the standard error of the
    difference, in which whatever makes an item easy or hard for both cancels.

    Args:
        statistic: The score of the units at the given indices, [num_units] int64.
        num_units: Items, pairs or responses that were judged.
        num_resamples: How often the units are drawn again; 500 gives the error to about 3 %.
        seed: Seed of the draws.

    Returns:
        [num_resamples]; empty with fewer than two units, which have no spread.
    """
    if num_units < 2:
        return np.empty(0)
    draws = np.random.default_rng(seed)
    scores = [statistic(draws.integers(num_units, size=num_units)) for _ in range(num_resamples)]
    return np.array(scores, dtype=np.float64)


def resampled_mean(values: ArrayLike) -> NDArray[np.float64]:
    """`mean(values)` over resamples of the values."""
    values_N = np.asarray(values, dtype=np.float64)
    return resampled(lambda index_N: float(values_N[index_N].mean()), len(values_N))


def stderr(resamples: ArrayLike) -> float:
    """Standard error of a score: its standard deviation over resamples; NaN without any."""
    values = np.asarray(resamples, dtype=np.float64)
    return float(values.std(ddof=1)) if values.size else math.nan


def prefixed(name: str, scores: Mapping[str, float]) -> dict[str, float]:
    """The scores under `name/`."""
    return {f"{name}/{score}": value for score, value in scores.items()}
