"""Bradley-Terry loss of a reward model."""

import torch
import torch.nn.functional as F
from torch import Tensor

from alignflow.training.losses.summed import SummedLoss


def reward_loss(
    chosen_B: Tensor,
    rejected_B: Tensor,
    *,
    margin_B: Tensor | None = None,
    centering: float = 0.0,
) -> SummedLoss:
    """Sum over pairs of -log sigmoid(chosen - rejected - margin), eq. 2 of arXiv:2307.09288.

    Without a margin it is eq. 1 of arXiv:2203.02155. Only differences of scores count in it, so
    scores may drift as one; centering adds the squared sum of each pair's scores, as eq. 2 of
    arXiv:2312.09244 and TRL's `center_rewards_coefficient` do.

    A unit is a pair. A tie counts as half a correct pair, so that a model that gives every
    response the same score is right half the time; what counts is the difference of the scores,
    whatever margin was asked for.

    Args:
        chosen_B: [B] float32, scores of the preferred responses, carrying gradient.
        rejected_B: [B] float32, scores of the other responses.
        margin_B: [B] float32, by how much the chosen score has to be above the other; None is 0.
        centering: Weight of (chosen + rejected)^2, >= 0.

    Raises:
        ValueError: Scores or margins differ in shape.
    """
    if chosen_B.shape != rejected_B.shape:
        raise ValueError(f"{chosen_B.shape=} but {rejected_B.shape=}")
    if margin_B is not None and margin_B.shape != chosen_B.shape:
        raise ValueError(f"{chosen_B.shape=} but {margin_B.shape=}")
    lead_B = chosen_B - rejected_B
    loss_B = -F.logsigmoid(lead_B if margin_B is None else lead_B - margin_B)
    if centering:
        loss_B = loss_B + centering * (chosen_B + rejected_B).square()
    return SummedLoss(
        total=loss_B.sum(),
        units=torch.tensor(lead_B.numel(), device=lead_B.device),
        metrics={
            "accuracy": num_correct(lead_B),
            "margin": lead_B.detach().sum(),
            "center": 0.5 * (chosen_B + rejected_B).detach().sum(),
        },
    )


def num_correct(margin_B: Tensor) -> Tensor:
    """Number of pairs with a margin above 0, a margin of exactly 0 counting one half.

    Args:
        margin_B: [B] float32, chosen less rejected.
    """
    margin_B = margin_B.detach()
    return (margin_B > 0).sum() + 0.5 * (margin_B == 0).sum()
