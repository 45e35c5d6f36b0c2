"""The reward model."""

from typing import Literal

from pydantic import NonNegativeFloat

from alignflow.training.config.trainer import TrainerConfig


class RewardModelConfig(TrainerConfig):
    """Bradley-Terry reward model: a scalar head on the last token (arXiv:2203.02155, eq. 1)."""

    stage: Literal["reward_model"] = "reward_model"
    margin_scale: NonNegativeFloat = 0.0
    """How far the scores of a pair have to be apart for each point between the data's scores of its
    answers (arXiv:2307.09288, eq. 2); 0 asks for none, else pairs without scores are refused."""
    centering: NonNegativeFloat = 0.0
    """Weight of the squared sum of a pair's scores, which keeps their mean near 0
    (arXiv:2312.09244, eq. 2); TRL's center_rewards_coefficient, where 0.01 is usual."""
