"""DPO and its family."""

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator

from alignflow.training.config.watch import RewardWatchConfig

DPOLoss = Literal["sigmoid", "ipo", "rpo_sq", "rpo_fwd_kl", "rpo_bwd_kl", "kto"]

_LOSSES_WITH: dict[str, tuple[DPOLoss, ...]] = {
    "label_smoothing": ("sigmoid",),
    "reward_scale": ("rpo_sq", "rpo_fwd_kl", "rpo_bwd_kl"),
    "desirable_weight": ("kto",),
    "undesirable_weight": ("kto",),
}
"""Options of `DPOConfig` that only some losses have."""


class DPOConfig(RewardWatchConfig):
    """Preference training without a reward model (arXiv:2305.18290) and its family."""

    stage: Literal["dpo"] = "dpo"
    loss: DPOLoss = "sigmoid"
    """What is minimised: `sigmoid` is DPO itself; `ipo` (arXiv:2310.12036) steers the mean over
    tokens to a fixed margin; `rpo_…` (arXiv:2406.11704) to the margin of the pair's scores, by
    squared distance, forward or backward KL; `kto` (arXiv:2402.01306) judges each response by
    itself and also takes unpaired ones."""
    beta: PositiveFloat = 0.1
    """Pull towards the reference model, dimensionless; larger stays closer."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Share of pairs that `sigmoid` takes to be labelled the wrong way round (conservative DPO)."""
    reward_scale: PositiveFloat = 1.0
    """What `rpo_…` multiplies `score_chosen - score_rejected` by before beta * margin meets it."""
    desirable_weight: PositiveFloat = 1.0
    """Weight of desirable responses in `kto`. With few of one sort, raise its weight until the sums
    of the weights are between 1:1 and 4:3, as the paper advises."""
    undesirable_weight: PositiveFloat = 1.0
    """Weight of undesirable responses in `kto`."""
    sft_weight: NonNegativeFloat = 0.0
    """Weight of an SFT loss on the chosen or desirable responses, in nats a token; 0 is without."""

    @model_validator(mode="after")
    def _options_belong_to_the_loss(self) -> Self:
        for name, losses in _LOSSES_WITH.items():
            is_set = getattr(self, name) != type(self).model_fields[name].default
            if is_set and self.loss not in losses:
                raise ValueError(f"{name} does nothing under the loss {self.loss}")
        return self

    @model_validator(mode="after")
    def _max_loss_lets_ipo_begin(self) -> Self:
        first = (1 / (2 * self.beta)) ** 2
        if self.loss == "ipo" and self.max_loss < first:
            raise ValueError(
                f"max_loss must be {first:g} or more, the first loss of ipo at beta {self.beta:g}"
            )
        return self
