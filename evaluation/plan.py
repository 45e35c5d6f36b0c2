"""What an evaluation job is about to do: what it would have to cut, how much of it there is."""

from collections.abc import Mapping, Sequence
from typing import Any

from alignflow.evaluation.config import EvaluationConfig, EvaluationJob
from alignflow.evaluation.held_out import HeldOut
from alignflow.evaluation.steering import num_answers
from alignflow.evaluation.suites.base import Suite
from alignflow.training.megatron.architecture import check_positions
from alignflow.training.steering import Steering, label
from alignflow.training.tokenizer import load_tokenizer


def check_lengths(job: EvaluationJob, steering: Steering | None) -> None:
    """Check that each model has positions for what it will be given: scored rows, and answers.

    Raises:
        ConfigError: Sequences may be longer than a model's positions.
    """
    config = job.evaluation
    judges = (job.reward_model, job.attribute_model)
    for model in (job.model, job.parent, *judges):
        if model is not None:
            check_positions(model, config.max_length, "evaluation.max_length")
    if job.preferences is None or not (config.num_samples or config.steered_attributes):
        return
    num_tokens = config.max_length + config.max_new_tokens
    for model in (job.model, *judges):
        if model is not None:
            check_positions(model, num_tokens, "evaluation.max_length + max_new_tokens")
    if steering is not None:
        num_tokens += len(load_tokenizer(job.model)(f"\n\n{label(steering.wanted)}")["input_ids"])
        check_positions(job.model, num_tokens, "evaluation.max_length + max_new_tokens + ratings")


def limited(
    config: EvaluationConfig,
    suites: Mapping[str, Suite],
    pair_sets: Mapping[str, Sequence[Mapping[str, Any]]],
    held_out: HeldOut | None,
) -> list[str]:
    """Return the settings that kept items from being judged."""
    found = [
        f"suites.{name}.limit"
        for name, suite in suites.items()
        if suite.num_items == config.suites[name].limit
    ]
    found += [
        f"pair_sets.{name}.limit"
        for name, records in pair_sets.items()
        if len(records) == config.pair_sets[name].limit
    ]
    if held_out is not None and len(held_out.pairs.trees) == config.max_preference_pairs:
        found.append("max_preference_pairs")
    return found


def num_steps(job: EvaluationJob, suites: Mapping[str, Suite], held_out: HeldOut | None) -> int:
    """Return the items of all parts of the job."""
    num_items = sum(len(suite.requests()) for suite in suites.values())
    if held_out is None:
        return num_items
    num_items += len(held_out.pairs.trees) + len(held_out.prompts)
    if job.reward_model is not None:
        num_items += len(held_out.plain_pairs.trees)
        num_items += sum(len(pairs.trees) for pairs in held_out.pair_sets.values())
    if held_out.steering is not None:
        attributes, num_prompts = job.evaluation.steered_attributes, len(held_out.steering_prompts)
        num_items += num_answers(held_out.steering, attributes, num_prompts)
    return num_items
