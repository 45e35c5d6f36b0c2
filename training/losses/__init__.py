"""Objectives: pure tensor functions that return a sum and a count."""

from alignflow.training.losses.attributes import attribute_loss
from alignflow.training.losses.dpo import PairLogps, dpo_loss
from alignflow.training.losses.reward import reward_loss
from alignflow.training.losses.rows import row_logps
from alignflow.training.losses.sft import sft_loss
from alignflow.training.losses.summed import SummedLoss

__all__ = [
    "PairLogps",
    "SummedLoss",
    "attribute_loss",
    "dpo_loss",
    "reward_loss",
    "row_logps",
    "sft_loss",
]
