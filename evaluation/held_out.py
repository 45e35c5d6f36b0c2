"""The held-out part of a preference dataset, as one evaluation asks for it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

from alignflow.evaluation.config import EvaluationJob
from alignflow.evaluation.pairs import Pairs, encode_pairs, held_out_pairs
from alignflow.evaluation.samples import choose_prompts
from alignflow.training.chat import ChatTokenizer, Message
from alignflow.training.data import PREFERENCES, steered_preferences
from alignflow.training.steering import Steering


@dataclass(frozen=True)
class HeldOut:
    """The held-out pairs as the model's tokenizer and chat template make them."""

    chat: ChatTokenizer
    steering: Steering | None
    """What the model is asked for, where it is one of SteerLM's."""
    pairs: Pairs
    """As the model is given them, and its parent too."""
    plain_pairs: Pairs
    """As the reward model is given them: the prompts ask for no ratings."""
    prompts: list[list[Message]]
    pair_sets: Mapping[str, Pairs]
    """Pairs of other origin for the reward model, as it is given them."""
    steering_prompts: list[list[Message]]
    """Those to answer with more and with less of an attribute."""

    @classmethod
    def load(
        cls,
        job: EvaluationJob,
        steering: Steering | None,
        pair_sets: Mapping[str, Sequence[Mapping[str, Any]]],
    ) -> Self | None:
        """Read it; None where the job has no preferences.

        Args:
            job: Whose dataset, model and lengths are taken.
            steering: What the model is asked for, where it is one of SteerLM's.
            pair_sets: Records of `read_pair_set` by name.

        Raises:
            DataError: The dataset can't be read, or holds no pairs.
        """
        if job.preferences is None:
            return None
        config = job.evaluation
        chat = ChatTokenizer.load(job.model)
        pairs_of = partial(
            held_out_pairs,
            job.preferences,
            chat=chat,
            max_length=config.max_length,
            limit=config.max_preference_pairs,
        )
        plain = pairs = pairs_of(PREFERENCES)
        num_steering_prompts = 0
        if steering is not None:
            pairs = pairs_of(steered_preferences(steering.wanted))
            steering.check(config.steered_attributes)
            if job.attribute_model is not None and config.steered_attributes:
                num_steering_prompts = config.max_steering_prompts
        prompts_of = partial(choose_prompts, job.preferences, chat, max_length=config.max_length)
        return cls(
            chat,
            steering,
            pairs,
            plain,
            prompts_of(number=config.num_samples),
            {
                name: encode_pairs(records, PREFERENCES, chat, max_length=config.max_length)
                for name, records in pair_sets.items()
            },
            prompts_of(number=num_steering_prompts),
        )
