"""Objectives: pure tensor functions that return a sum and a count."""

from alignflow.training.losses.attributes import attribute_loss
from alignflow.training.losses.dpo import (
    Distance,
    PairLogps,
    dpo_loss,
    ipo_loss,
    rpo_loss,
    with_sft,
)
from alignflow.training.losses.kto import kto_loss, log_ratios
from alignflow.training.losses.reward import reward_loss
from alignflow.training.losses.rows import row_lengths, row_logps
from alignflow.training.losses.sft import sft_loss
from alignflow.training.losses.summed import SummedLoss

__all__ = [
    "Distance",
    "PairLogps",
    "SummedLoss",
    "attribute_loss",
    "dpo_loss",
    "ipo_loss",
    "kto_loss",
    "log_ratios",
    "reward_loss",
    "row_lengths",
    "row_logps",
    "rpo_loss",
    "sft_loss",
    "with_sft",
]
