"""Supervised fine-tuning."""

from typing import Literal

from alignflow.training.config.trainer import TrainerConfig


class SFTConfig(TrainerConfig):
    """Supervised fine-tuning: next-token loss on assistant turns."""

    stage: Literal["sft"] = "sft"
