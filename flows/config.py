"""The recipe: one frozen config put together from those that the packages define."""

import difflib
from typing import Annotated, Literal, Self, get_args

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from alignflow.config import Config
from alignflow.data_validation.config import AttributeName
from alignflow.evaluation.config import OF_ANSWER_JUDGE, SCORES_OF_A_CHILD
from alignflow.tasks.config import RunConfig
from alignflow.training.config import (
    AnnotationConfig,
    AttributeModelConfig,
    DPOConfig,
    PPOConfig,
    RewardModelConfig,
    SFTConfig,
    SteerLM2Config,
    SteerLMConfig,
)

Method = Literal["dpo", "ppo", "steerlm", "steerlm2"]

STEERED_METHODS: frozenset[Method] = frozenset({"steerlm", "steerlm2"})
"""Those whose model is asked for ratings."""


class ComparisonConfig(Config):
    """Ways of aligning one SFT model that are tried side by side."""

    methods: Annotated[tuple[Method, ...], Field(min_length=1)]
    """The ways; each uses the recipe's section of its name."""
    seeds: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)]
    """Each method is trained once with each of them, for the spread."""

    @model_validator(mode="after")
    def _nothing_is_tried_twice(self) -> Self:
        for name in ("methods", "seeds"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name} names one twice")
        return self


class Recipe(RunConfig):
    """One pipeline, whole: data, base model, stages, evaluation, gate, registry, cluster."""

    method: Method = "dpo"
    """How the SFT model is aligned."""
    compare: ComparisonConfig | None = None
    """Try several methods and seeds side by side instead, and register nothing."""
    sft: SFTConfig = SFTConfig()
    reward_model: RewardModelConfig = RewardModelConfig()
    dpo: DPOConfig = DPOConfig()
    ppo: PPOConfig = PPOConfig()
    attribute_model: AttributeModelConfig = AttributeModelConfig()
    annotation: AnnotationConfig = AnnotationConfig()
    steerlm: SteerLMConfig = SteerLMConfig()
    steerlm2: SteerLM2Config = SteerLM2Config()
    steerlm2_rounds: PositiveInt = 1
    """Times that method `steerlm2` samples and learns, each from what the time before made, with a
    seed that is one higher: stages of their own; 2 in the paper (arXiv:2406.08673)."""

    @property
    def methods(self) -> tuple[Method, ...]:
        """Every way in which a run aligns the SFT model."""
        return self.compare.methods if self.compare else (self.method,)

    @property
    def score_names(self) -> list[str]:
        """The scores that the aligned model gets, as gate rules name them."""
        names = self.evaluation.score_names
        if self.data.attributes is not None and self.evaluation.num_samples:
            names += [f"samples/{name}" for name in get_args(AttributeName)]
        return names + [f"steerlm/{name}_response" for name in self.evaluation.steered_attributes]

    @model_validator(mode="after")
    def _unpaired_data_is_for_kto(self) -> Self:
        if self.data.unpaired and self.dpo.loss != "kto":
            raise ValueError(f"data.unpaired does nothing under dpo.loss {self.dpo.loss}")
        return self

    @model_validator(mode="after")
    def _steerlm_has_its_data(self) -> Self:
        steered = [method for method in self.methods if method in STEERED_METHODS]
        if steered and self.data.attributes is None:
            raise ValueError(f"method {steered[0]} learns from rated answers; give data.attributes")
        if not steered and self.evaluation.steered_attributes:
            raise ValueError(
                "evaluation.steered_attributes does nothing without method steerlm or steerlm2"
            )
        return self

    @model_validator(mode="after")
    def _rounds_are_of_steerlm2(self) -> Self:
        if self.steerlm2_rounds > 1 and "steerlm2" not in self.methods:
            raise ValueError("steerlm2_rounds does nothing without method steerlm2")
        return self

    @model_validator(mode="after")
    def _nothing_is_gated_in_a_comparison(self) -> Self:
        if self.compare is not None and self.gate.rules:
            raise ValueError("gate.rules do nothing with compare, which registers no model")
        if self.compare is not None and self.registry.promotion != "manual":
            raise ValueError("registry.promotion does nothing with compare; leave it out")
        if self.compare is not None and self.evaluation.answer_judge is not None:
            raise ValueError("evaluation.answer_judge does nothing with compare; leave it out")
        return self

    @model_validator(mode="after")
    def _rules_ask_for_scores_that_are_made(self) -> Self:
        known = self.score_names
        for name, rule in self.gate.rules.items():
            place = f"gate.rules.{name}.score: "
            if rule.score.partition("/")[0] in OF_ANSWER_JUDGE and not self.evaluation.answer_judge:
                raise ValueError(f"{place}{rule.score} takes a judge; give evaluation.answer_judge")
            if rule.score not in known:
                near = difflib.get_close_matches(rule.score, known, n=1)
                hint = f"the nearest is {near[0]!r}" if near else f"known: {', '.join(known)}"
                raise ValueError(f"{place}there is no score {rule.score!r}; {hint}")
            if rule.compared_with == "base" and rule.score in SCORES_OF_A_CHILD:
                raise ValueError(
                    f"{place}{rule.score} compares a model with its parent, and the base model "
                    "has none; compare with sft or champion, or give a bound"
                )
            if rule.compared_with in ("base", "sft") and rule.score.startswith("steerlm/"):
                raise ValueError(
                    f"{place}{rule.score} is a score of the aligned model alone; compare with "
                    "champion, or give a bound"
                )
        return self
