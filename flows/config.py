"""The recipe: one frozen config put together from those that the packages define."""

from typing import Literal, Self

from pydantic import model_validator

from alignflow.tasks.config import RunConfig
from alignflow.training.config import DPOConfig, PPOConfig, RewardModelConfig, SFTConfig

Method = Literal["dpo", "ppo"]


class Recipe(RunConfig):
    """One pipeline, whole: data, base model, stages, evaluation, gate, registry, cluster."""

    method: Method = "dpo"
    """How the SFT model is aligned."""
    sft: SFTConfig = SFTConfig()
    reward_model: RewardModelConfig = RewardModelConfig()
    dpo: DPOConfig = DPOConfig()
    ppo: PPOConfig = PPOConfig()

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
