"""A stage as a job gets it: the union of all stages, and the folders that one reads."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from alignflow.config import Config
from alignflow.training.config.dpo import DPOConfig
from alignflow.training.config.ppo import PPOConfig
from alignflow.training.config.reward_model import RewardModelConfig
from alignflow.training.config.sft import SFTConfig
from alignflow.training.config.steerlm import (
    AttributeModelConfig,
    SteerLM2Config,
    SteerLMConfig,
)

StageConfig = Annotated[
    SFTConfig
    | RewardModelConfig
    | DPOConfig
    | PPOConfig
    | AttributeModelConfig
    | SteerLMConfig
    | SteerLM2Config,
    Field(discriminator="stage"),
]


_FURTHER_MODELS = {"ppo": ("reward_model",), "steerlm2": ("attribute_model", "prior_model")}
"""What a stage reads besides the model that it trains."""


class TrainingJob(Config):
    """Config of `python -m alignflow.training`: a stage and the folders it reads."""

    stage: StageConfig
    model: Path
    """Hugging Face folder of the initial weights, with tokenizer and chat template."""
    dataset: Path
    """Dataset artifact: `train/*.parquet`, `held_out/*.parquet`."""
    reward_model: Path | None = None
    """Folder of the reward model, with its head and scale; the stage `ppo` needs it."""
    attribute_model: Path | None = None
    """Folder of the attribute model, with its head and scale; the stage `steerlm2` needs it."""
    prior_model: Path | None = None
    """Hugging Face folder of the model that answers without being asked for ratings, that of SFT;
    the stage `steerlm2` needs it."""

    @model_validator(mode="after")
    def _a_stage_has_the_models_it_reads(self) -> Self:
        needed = _FURTHER_MODELS.get(self.stage.stage, ())
        for name in ("reward_model", "attribute_model", "prior_model"):
            if (name in needed) != (getattr(self, name) is not None):
                what = "needs" if name in needed else "has no use for"
                article = "an" if name == "attribute_model" else "a"
                raise ValueError(f"the stage {self.stage.stage} {what} {article} {name}")
        return self
