"""From the rating that an attribute model predicts to the probability of each rating."""

import torch
from torch import Tensor

# The edges of what is rounded to 0, 1, 2, 3 and 4, as shares of the scale.
_EDGES = (0.0, 0.125, 0.375, 0.625, 0.875, 1.0)
_MAX_RATING = 4.0
_MARGIN = 0.01
"""A prediction stays so far from both ends of the scale, where a Beta distribution has no width."""
_PRECISION = 1e-16


def rating_log_likelihood(
    predicted_BK: Tensor, rating_K: Tensor, *, concentration: float
) -> Tensor:
    """Return log P(rating) of K attributes of B answers, [B, K] float64, in nats.

    An attribute model by regression gives a number, not a distribution. As in section 4.5 of
    arXiv:2406.08673 the rating is taken to follow a Beta distribution over the scale from 0 to 4
    whose mean is the prediction: alpha = c r and beta = c - alpha, with r the prediction as a share
    of the scale and c the concentration. The probability of a rating is that of its bin. The paper
    leaves the bins open; these are what rounds to each rating, as everywhere here. Predictions
    beyond the scale count as its ends, less a hundredth.

    Args:
        predicted_BK: [B, K], predicted ratings.
        rating_K: [K] int64, 0 to 4, the ratings whose probability is asked for.
        concentration: c = alpha + beta, > 0: how closely ratings lie around the prediction. 24 in
            the paper, where it fits the ratings of HelpSteer2.
    """
    mean_BK = predicted_BK.double().clamp(_MARGIN, _MAX_RATING - _MARGIN) / _MAX_RATING
    alpha_BK, beta_BK = concentration * mean_BK, concentration * (1 - mean_BK)
    edges = torch.tensor(_EDGES, dtype=torch.float64, device=predicted_BK.device)
    low_K, high_K = edges[rating_K], edges[rating_K + 1]
    # A difference of two tails keeps its digits where both are those of the near side.
    below_low, below_high = (_log_cdf(alpha_BK, beta_BK, edge) for edge in (low_K, high_K))
    above_low, above_high = (_log_cdf(beta_BK, alpha_BK, 1 - edge) for edge in (low_K, high_K))
    across_BK = (-(below_low.exp() + above_high.exp())).log1p()
    return torch.where(
        high_K <= mean_BK,
        _log_difference(below_high, below_low),
        torch.where(low_K >= mean_BK, _log_difference(above_low, above_high), across_BK),
    )


def _log_cdf(alpha_BK: Tensor, beta_BK: Tensor, edge_K: Tensor) -> Tensor:
    """Return the log of the cumulative Beta distribution, the regularised incomplete beta function.

    I_x(a, b) = x^a (1 - x)^b / (a B(a, b)) * sum over n of prod over k < n of (a + b + k) x /
    (a + 1 + k), eq. 8.17.8 of the NIST handbook (dlmf.nist.gov): all terms are positive, so nothing
    cancels, however small the result.
    """
    inner_K = (edge_K > 0) & (edge_K < 1)
    x_K = edge_K.where(inner_K, 0.5)
    total_BK = alpha_BK + beta_BK
    term_BK = torch.ones_like(alpha_BK + x_K)
    sum_BK = torch.ones_like(term_BK)
    number = 0
    while bool((term_BK > _PRECISION * sum_BK).any()):
        term_BK = term_BK * x_K * (total_BK + number) / (alpha_BK + 1 + number)
        sum_BK = sum_BK + term_BK
        number += 1
    log_beta_BK = alpha_BK.lgamma() + beta_BK.lgamma() - total_BK.lgamma()
    log_front_BK = alpha_BK * x_K.log() + beta_BK * (-x_K).log1p() - alpha_BK.log() - log_beta_BK
    at_ends_K = torch.where(edge_K <= 0, -torch.inf, 0.0)
    return torch.where(inner_K, log_front_BK + sum_BK.log(), at_ends_K)


def _log_difference(larger: Tensor, smaller: Tensor) -> Tensor:
    """Return log(exp(larger) - exp(smaller))."""
    return larger + (-(smaller - larger).exp()).log1p()
