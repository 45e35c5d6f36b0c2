"""Direct preference optimization: preference training without a reward model."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from alignflow.training.losses.reward import num_correct
from alignflow.training.losses.summed import SummedLoss


@dataclass(frozen=True)
class PairLogps:
    """Log-probabilities of B pairs of responses, summed over response tokens, in nats."""

    chosen_B: Tensor
    """[B] float32."""
    rejected_B: Tensor
    """[B] float32."""


def dpo_loss(policy: PairLogps, reference: PairLogps, *, beta: float) -> SummedLoss:
    """Sum over pairs of -log sigmoid(beta * margin), eq. 7 of arXiv:2305.18290.

    The margin is (policy - reference) of the chosen response less that of the rejected one.
    A unit is a pair. The rewards among the metrics are the implicit ones, eq. 5 of the same
    paper: beta * (policy - reference).

    Args:
        policy: [B] float32 each, carrying gradient.
        reference: [B] float32 each, detached.
        beta: Pull towards the reference, > 0, dimensionless.

    Raises:
        ValueError: Policy and reference differ in shape.
    """
    if policy.chosen_B.shape != reference.chosen_B.shape:
        raise ValueError(f"{policy.chosen_B.shape=} but {reference.chosen_B.shape=}")
    chosen_B = beta * (policy.chosen_B - reference.chosen_B)
    rejected_B = beta * (policy.rejected_B - reference.rejected_B)
    margin_B = chosen_B - rejected_B
    return SummedLoss(
        total=-F.logsigmoid(margin_B).sum(),
        units=torch.tensor(margin_B.numel(), device=margin_B.device),
        metrics={
            "accuracy": num_correct(margin_B),
            "margin": margin_B.detach().sum(),
            "chosen_reward": chosen_B.detach().sum(),
            "rejected_reward": rejected_B.detach().sum(),
        },
    )
