"""What log-probabilities and predictions amount to: pure functions on plain arrays.

Log-probabilities are sums over the tokens of a continuation, in nats, unless a name says otherwise.
A score of a set of items is a function of sums over them, [..., C], so that it can be had for many
sets at once, such as those that the bootstrap draws.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray


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


def hits_and_claims(predictions: ArrayLike, labels: ArrayLike) -> NDArray[np.float64]:
    """Return what each item adds to the counts that `macro_f1` is a function of.

    Args:
        predictions: [N] class numbers.
        labels: [N] class numbers.

    Returns:
        [N, 2 * classes]: of each class, whether it was predicted rightly, and how often it occurs
        in prediction and label, 0 to 2 times.
    """
    predicted_N, true_N = np.asarray(predictions), np.asarray(labels)
    columns = []
    for label in range(int(max(predicted_N.max(initial=0), true_N.max(initial=0))) + 1):
        is_claimed_N, is_true_N = predicted_N == label, true_N == label
        columns += [is_claimed_N & is_true_N, is_claimed_N.astype(int) + is_true_N]
    return np.stack(columns, axis=1).astype(np.float64)


def macro_f1(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over classes of the harmonic mean of precision and recall.

    A class counts when it occurs among labels or predictions; one that is never right has F1 0.

    Args:
        sums: [..., 2 * classes] sums of `hits_and_claims`.
    """
    hits, claims = sums[..., 0::2], sums[..., 1::2]
    f1 = np.divide(2 * hits, claims, out=np.zeros_like(hits), where=claims != 0)
    return ratio(np.stack([f1.sum(-1), (claims != 0).sum(-1)], axis=-1))


def grouped(values: ArrayLike, groups: Sequence[str]) -> NDArray[np.float64]:
    """Return what each item adds to the sums that `group_gap` is a function of.

    Args:
        values: [N] a value an item.
        groups: The group of each item.

    Returns:
        [N, 2 * groups]: of each group, in the order of their names, the value of an item that is
        of it and whether it is.
    """
    is_in_NG = np.asarray(groups)[:, None] == np.unique(groups)
    columns_NG2 = np.stack([np.asarray(values)[:, None] * is_in_NG, is_in_NG], axis=-1)
    return columns_NG2.reshape(len(groups), 2 * is_in_NG.shape[1]).astype(np.float64)


def group_gap(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Largest mean of a group less the smallest; groups without items count for neither.

    Args:
        sums: [..., 2 * groups] sums of `grouped`.
    """
    means = ratio(sums.reshape(*sums.shape[:-1], -1, 2))
    gaps: NDArray[np.float64] = np.fmax.reduce(means, axis=-1) - np.fmin.reduce(means, axis=-1)
    return gaps


def ratio(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sum of values over sum of counts, [..., 2]; NaN where nothing is counted."""
    totals, counts = sums[..., 0], sums[..., 1]
    return np.divide(totals, counts, out=np.full_like(totals, np.nan), where=counts != 0)


def perplexity(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Exponential of the mean negative log-likelihood of a token; infinity past float range.

    Args:
        sums: [..., 2] negative log-likelihood in nats, and tokens.
    """
    with np.errstate(over="ignore"):
        return np.exp(ratio(sums))


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


def outcomes_in_both_orders(margins_N2: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 for each first answer that a judge prefers in both orders, 0 for the other's, else 1/2.

    The rule of MT-Bench against a judge's liking for a place (arXiv:2306.05685, section 3.4).

    Args:
        margins_N2: By how much the first answer is preferred, asked in one order and in the other;
            NaN gives NaN.
    """
    # Signs add up to 2 or -2 where both orders agree, to 0 or a half-hearted 1 or -1 elsewhere.
    agreed_N = np.trunc(np.sign(margins_N2).sum(axis=-1) / 2)
    outcomes_N: NDArray[np.float64] = (1 + agreed_N) / 2
    return outcomes_N
