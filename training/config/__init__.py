"""Configs of the training stages: a file per family, and a union on `stage`."""

from alignflow.training.config.dpo import DPOConfig, DPOLoss
from alignflow.training.config.job import StageConfig, TrainingJob
from alignflow.training.config.ppo import (
    AdaptiveKLConfig,
    GAEConfig,
    GRPOConfig,
    PPOConfig,
    RLOOConfig,
)
from alignflow.training.config.reward_model import RewardModelConfig
from alignflow.training.config.sft import SFTConfig
from alignflow.training.config.steerlm import (
    AnnotationConfig,
    AttributeModelConfig,
    SteerLM2Config,
    SteerLMConfig,
)
from alignflow.training.config.trainer import (
    LAYOUT_FIELDS,
    SURVIVAL_FIELDS,
    LoRAConfig,
    ParallelConfig,
    Precision,
    Projection,
    Recompute,
    TrainerConfig,
)

__all__ = [
    "LAYOUT_FIELDS",
    "SURVIVAL_FIELDS",
    "AdaptiveKLConfig",
    "AnnotationConfig",
    "AttributeModelConfig",
    "DPOConfig",
    "DPOLoss",
    "GAEConfig",
    "GRPOConfig",
    "LoRAConfig",
    "PPOConfig",
    "ParallelConfig",
    "Precision",
    "Projection",
    "RLOOConfig",
    "Recompute",
    "RewardModelConfig",
    "SFTConfig",
    "StageConfig",
    "SteerLM2Config",
    "SteerLMConfig",
    "TrainerConfig",
    "TrainingJob",
]
