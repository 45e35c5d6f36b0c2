"""What stages share that learn from a model's own responses."""

from typing import Annotated, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from alignflow.training.config.trainer import TrainerConfig


class SamplingConfig(TrainerConfig):
    """How responses are sampled, by a model that each process holds whole."""

    max_new_tokens: PositiveInt = 256
    """Most tokens of a response; a prompt has at most `max_length` less this."""
    generation_tokens: PositiveInt = 65536
    """Tokens of prompts and of room for responses that are decoded together on a rank; bounds the
    memory of keys and values."""
    temperature: PositiveFloat = 1.0
    """Divides the logits, when sampling and in every log-probability alike; 0.7 in OpenAI's code,
    TRL and the paper of SteerLM 2.0, 1 elsewhere."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Sample from the likeliest tokens that have this probability; 1 samples from all, 0.9 in the
    paper of SteerLM 2.0. Log-probabilities stay those of all tokens, so that leaving tokens out
    biases what is learnt."""
    max_sampler_delta: PositiveFloat = 0.05
    """A mean difference of a token's log-probability between sampling and training above this, in
    nats, stops the job: it would learn from other responses than it sampled."""

    @property
    def max_prompt_tokens(self) -> int:
        """Most tokens of a prompt."""
        return self.max_length - self.max_new_tokens

    @model_validator(mode="after")
    def _a_prompt_fits(self) -> Self:
        if self.max_prompt_tokens < 1:
            raise ValueError("max_new_tokens must be less than max_length, to leave a prompt room")
        return self

    @model_validator(mode="after")
    def _each_rank_holds_the_model(self) -> Self:
        if self.parallel.world_size != self.parallel.data_parallel_size:
            raise ValueError(
                "responses are sampled by a model that each process must hold whole: parallel may "
                "have a data_parallel_size only"
            )
        return self
