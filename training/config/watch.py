"""What stages share whose rewards may leave their purpose behind."""

from typing import Annotated, Self

from pydantic import Field, PositiveInt, model_validator

from alignflow.training.config.trainer import TrainerConfig


class RewardWatchConfig(TrainerConfig):
    """When over-optimisation of a reward (arXiv:2210.10760) stops the job."""

    max_accuracy_drop: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Stop the job for reward hacking where the accuracy on held-out pairs stays further than this
    below its best while the held-out reward is above what it was then; None lets it pass. DPO's
    accuracy and reward are those of its implicit rewards, and the reward is the margin. PPO's is
    the reward of its responses, and its accuracy the share of pairs of which the policy gives the
    chosen response more log-probability a token. Needs validate_every_steps."""
    accuracy_drop_validations: PositiveInt = 3
    """Validations in a row that must show it."""

    @model_validator(mode="after")
    def _watch_has_validations(self) -> Self:
        if self.max_accuracy_drop is not None and self.validate_every_steps is None:
            raise ValueError("max_accuracy_drop needs validate_every_steps")
        return self
