"""Bradley-Terry loss of a reward model."""

import torch
import torch.nn.functional as F
from torch import Tensor

from alignflow.training.losses.summed import SummedLoss


def reward_loss(chosen_B: Tensor, rejected_B: Tensor) -> SummedLoss:
    """Sum over pairs of -log sigmoid(chosen - rejected), eq. 1 of arXiv:2203.02155.

    A unit is a pair. A tie counts as half a correct pair, so that a model that gives every
    response the same score is right half the time.

    Args:
        chosen_B: [B] float32, scores of the preferred responses, carrying gradient.
        rejected_B: [B] float32, scores of the other responses.

    Raises:
        ValueError: The two differ in shape.
    """
    if chosen_B.shape != rejected_B.shape:
        raise ValueError(f"{chosen_B.shape=} but {rejected_B.shape=}")
    margin_B = chosen_B - rejected_B
    return SummedLoss(
        total=-F.logsigmoid(margin_B).sum(),
        units=torch.tensor(margin_B.numel(), device=margin_B.device),
        metrics={
            "accuracy": num_correct(margin_B),
            "margin": margin_B.detach().sum(),
        },
    )


def num_correct(margin_B: Tensor) -> Tensor:
    """Number of pairs with a margin above 0, a margin of exactly 0 counting one half.

    Args:
        margin_B: [B] float32, chosen less rejected.
    """
    margin_B = margin_B.detach()
    return (margin_B > 0).sum() + 0.5 * (margin_B == 0).sum()
