"""Next-token loss of supervised fine-tuning."""

import torch
from torch import Tensor

from alignflow.training.losses.summed import SummedLoss


def sft_loss(logps_N: Tensor) -> SummedLoss:
    """Sum of -log p over the scored tokens, in nats. A unit is a token.

    Args:
        logps_N: [N] float32, log-probabilities of the scored tokens, carrying gradient.
    """
    return SummedLoss(
        total=-logps_N.sum(),
        units=torch.tensor(logps_N.numel(), device=logps_N.device),
    )
