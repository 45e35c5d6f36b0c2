"""What reward model and attribute model say in an evaluation, of pairs and of the policy's answers.

All ranks call these functions alike, and know the same afterwards.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from alignflow.evaluation import preferences
from alignflow.evaluation.config import EvaluationConfig
from alignflow.evaluation.held_out import HeldOut
from alignflow.evaluation.results import Results
from alignflow.evaluation.samples import (
    SampleAnswer,
    rating_result,
    sample_result,
    with_ratings,
    with_rewards,
)
from alignflow.evaluation.sharing import SharedWork
from alignflow.evaluation.steering import (
    SteeredAnswers,
    all_answers,
    by_attribute,
    steering_result,
)
from alignflow.training.megatron.judges import AttributeModel, RewardModel


def judge_reward_model(
    reward: RewardModel,
    held_out: HeldOut,
    config: EvaluationConfig,
    results: Results,
    work: SharedWork,
) -> None:
    """Add the accuracy of the reward model on pairs."""
    score = partial(reward.passes, max_tokens=config.microbatch_tokens)
    pairs = held_out.plain_pairs
    if pairs.trees:
        rewards = work.collect("reward_model", pairs.trees, score)
        result = preferences.reward_result(rewards, pairs.items)
        results.add("reward_model", result, len(pairs.trees))
    for name, pairs in held_out.pair_sets.items():
        rewards = work.collect(name, pairs.trees, score)
        results.add(name, preferences.pair_set_result(rewards, pairs), len(pairs.trees))


def reward_samples(
    reward: RewardModel,
    held_out: HeldOut,
    samples: list[SampleAnswer],
    config: EvaluationConfig,
    results: Results,
    work: SharedWork,
) -> list[SampleAnswer]:
    """Add the mean reward of the samples; return the samples with it."""
    if not samples:
        return samples
    score = partial(reward.row_passes, max_tokens=config.microbatch_tokens)

    def collect(rows: list[list[int]]) -> list[float]:
        return work.collect("samples.reward", rows, score, are_new=False)

    judged = with_rewards(samples, held_out.chat, collect)
    results.add("samples", sample_result(judged), len(judged))
    return judged


def rate(
    attributes: AttributeModel,
    held_out: HeldOut,
    samples: list[SampleAnswer],
    steered: Mapping[str, SteeredAnswers],
    config: EvaluationConfig,
    results: Results,
    work: SharedWork,
) -> list[SampleAnswer]:
    """Add the mean ratings of the samples, and what steering does; return the samples rated."""
    score = partial(attributes.row_passes, max_tokens=config.microbatch_tokens)
    names = attributes.scale.names

    def rated(part: str, answers: list[SampleAnswer]) -> list[SampleAnswer]:
        def collect(rows: list[list[int]]) -> list[Any]:
            return work.collect(part, rows, score, are_new=False)

        return with_ratings(answers, held_out.chat, collect, names)

    if steered:
        judged = by_attribute(rated("steerlm.ratings", all_answers(steered)), steered)
        results.add("steerlm", steering_result(judged), len(held_out.steering_prompts))
    if not samples:
        return samples
    samples = rated("samples.ratings", samples)
    results.add("samples", rating_result(samples, names), len(samples))
    return samples
