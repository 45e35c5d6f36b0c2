"""Objectives: pure tensor functions that return a sum and a count."""

from alignflow.training.losses.dpo import PairLogps, dpo_loss
from alignflow.training.losses.kl import KLEstimator, kl_per_token
from alignflow.training.losses.ppo import policy_loss, value_loss
from alignflow.training.losses.reward import reward_loss
from alignflow.training.losses.rows import row_logps
from alignflow.training.losses.sft import sft_loss
from alignflow.training.losses.summed import SummedLoss

__all__ = [
    "KLEstimator",
    "PairLogps",
    "SummedLoss",
    "dpo_loss",
    "kl_per_token",
    "policy_loss",
    "reward_loss",
    "row_logps",
    "sft_loss",
    "value_loss",
]
