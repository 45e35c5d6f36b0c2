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
from alignflow.training.losses.kl import KLEstimator, kl_per_token
from alignflow.training.losses.kto import kto_loss, log_ratios
from alignflow.training.losses.ppo import policy_loss, value_loss
from alignflow.training.losses.reward import reward_loss
from alignflow.training.losses.rows import row_lengths, row_logps
from alignflow.training.losses.sft import sft_loss
from alignflow.training.losses.steerlm2 import steerlm2_loss
from alignflow.training.losses.summed import SummedLoss

__all__ = [
    "Distance",
    "KLEstimator",
    "PairLogps",
    "SummedLoss",
    "attribute_loss",
    "dpo_loss",
    "ipo_loss",
    "kl_per_token",
    "kto_loss",
    "log_ratios",
    "policy_loss",
    "reward_loss",
    "row_lengths",
    "row_logps",
    "rpo_loss",
    "sft_loss",
    "steerlm2_loss",
    "value_loss",
    "with_sft",
]
