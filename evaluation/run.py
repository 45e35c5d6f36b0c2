"""One evaluation job: a model, judged on benchmarks, held-out pairs and sample answers."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from alignflow.evaluation import preferences
from alignflow.evaluation.choices import encode_requests
from alignflow.evaluation.config import EvaluationConfig, EvaluationJob
from alignflow.evaluation.generated import judge_generations, load_judges
from alignflow.evaluation.pair_sets import read_pair_set
from alignflow.evaluation.pairs import Pairs, encode_pairs, held_out_pairs
from alignflow.evaluation.progress import Progress
from alignflow.evaluation.results import Results, write_jsonl
from alignflow.evaluation.samples import (
    SampleAnswer,
    answer_prompts,
    choose_prompts,
    rating_result,
    sample_result,
    with_ratings,
    with_rewards,
)
from alignflow.evaluation.steering import (
    SteeredAnswers,
    answer_steered,
    num_answers,
    rate_steered,
    steering_result,
)
from alignflow.evaluation.suites import load_suite
from alignflow.evaluation.suites.base import Suite
from alignflow.evaluation.suites.generation import GenerationSuite
from alignflow.jobs.run_folder import RunFolder
from alignflow.jobs.spec import JobResult
from alignflow.training.chat import ChatTokenizer, Message
from alignflow.training.data import PREFERENCES, steered_preferences
from alignflow.training.megatron.architecture import check_positions
from alignflow.training.megatron.inference import LanguageModel
from alignflow.training.megatron.judges import AttributeModel, RewardModel
from alignflow.training.steering import Steering, label
from alignflow.training.tokenizer import load_tokenizer


def evaluate(job: EvaluationJob, folder: RunFolder) -> JobResult:
    """Judge the model and write scores, items and sample answers to the job's output.

    Raises:
        ConfigError: Sequences may be longer than a model's positions.
        DataError: A benchmark file, the held-out pairs or a model folder can't be used.
    """
    config = job.evaluation
    # Files are read before models: what is wrong with them shows in the first second.
    suites = {name: load_suite(suite, Path(suite.data)) for name, suite in config.suites.items()}
    judges = load_judges(job, folder.output)
    pair_sets = {
        name: read_pair_set(Path(pairs.data), pairs.limit)
        for name, pairs in config.pair_sets.items()
    }
    steering = Steering.load(job.model)
    _check_lengths(job, suites, steering)
    held_out = _HeldOut.load(job, steering, pair_sets)
    progress = Progress(folder, _num_steps(job, suites, held_out))
    results = Results(folder.output, limited=_limited(config, suites, pair_sets, held_out))

    policy = _load_policy(job.model, config, folder)
    num_truncated = _judge_benchmarks(policy, job.model, suites, config, results, progress)
    num_truncated |= judge_generations(
        policy, job, suites, judges, steering=steering, results=results, progress=progress
    )
    samples: list[SampleAnswer] = []
    steered: dict[str, SteeredAnswers] = {}
    if held_out is not None:
        num_truncated["preference"] = held_out.pairs.num_truncated
        num_truncated |= {name: of.num_truncated for name, of in held_out.pair_sets.items()}
        parent = _load_policy(job.parent, config, folder) if job.parent is not None else None
        _judge_pairs(policy, parent, held_out, config, results, progress)
        samples = _answer(policy, held_out, config, progress)
        steered = _answer_steered(policy, held_out, config, progress)
        del parent
    del policy
    if held_out is not None and job.reward_model is not None:
        _tell_loading(folder, job.reward_model)
        reward = RewardModel.load(job.reward_model, precision=config.precision)
        samples = _judge_by_reward(reward, held_out, samples, config, results, progress)
        del reward
    if held_out is not None and job.attribute_model is not None:
        _tell_loading(folder, job.attribute_model)
        attributes = AttributeModel.load(job.attribute_model, precision=config.precision)
        samples = _rate(attributes, held_out, samples, steered, config, results, progress)

    write_jsonl(folder.output / "samples.jsonl", [sample.to_json() for sample in samples])
    results.write(num_truncated)
    refused = held_out.pairs.refused if held_out is not None else []
    return JobResult(
        metrics=results.scores,
        details={
            "num_items": results.num_items,
            "num_truncated": num_truncated,
            "refused_rows": refused,
        },
    )


def _check_lengths(
    job: EvaluationJob, suites: Mapping[str, Suite | GenerationSuite], steering: Steering | None
) -> None:
    """Check that each model has positions for what it will be given: scored rows, and answers."""
    config = job.evaluation
    judges = (job.reward_model, job.attribute_model)
    for model in (job.model, job.parent, *judges):
        if model is not None:
            check_positions(model, config.max_length, "evaluation.max_length")
    if any(isinstance(suite, GenerationSuite) for suite in suites.values()):
        num_tokens = config.max_length + config.generation.max_new_tokens
        setting = "evaluation.max_length + generation.max_new_tokens"
        check_positions(job.model, num_tokens, setting)
    if job.preferences is None or not (config.num_samples or config.steered_attributes):
        return
    num_tokens = config.max_length + config.max_new_tokens
    for model in (job.model, *judges):
        if model is not None:
            check_positions(model, num_tokens, "evaluation.max_length + max_new_tokens")
    if steering is not None:
        num_tokens += len(load_tokenizer(job.model)(f"\n\n{label(steering.wanted)}")["input_ids"])
        check_positions(job.model, num_tokens, "evaluation.max_length + max_new_tokens + ratings")


@dataclass(frozen=True)
class _HeldOut:
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
    ) -> "_HeldOut | None":
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


def _limited(
    config: EvaluationConfig,
    suites: Mapping[str, Suite | GenerationSuite],
    pair_sets: Mapping[str, Sequence[Mapping[str, Any]]],
    held_out: _HeldOut | None,
) -> list[str]:
    """Return the settings that kept items from being judged."""
    limited = [
        f"suites.{name}.limit"
        for name, suite in suites.items()
        if suite.num_items == config.suites[name].limit
    ]
    limited += [
        f"pair_sets.{name}.limit"
        for name, records in pair_sets.items()
        if len(records) == config.pair_sets[name].limit
    ]
    if held_out is not None and len(held_out.pairs.trees) == config.max_preference_pairs:
        limited.append("max_preference_pairs")
    return limited


def _num_steps(
    job: EvaluationJob, suites: Mapping[str, Suite | GenerationSuite], held_out: _HeldOut | None
) -> int:
    """Return the items of all parts of the job."""
    num_items = sum(suite.num_items for suite in suites.values())
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


def _load_policy(model: Path, config: EvaluationConfig, folder: RunFolder) -> LanguageModel:
    _tell_loading(folder, model)
    return LanguageModel.load(model, precision=config.precision)


def _tell_loading(folder: RunFolder, model: Path) -> None:
    folder.append_metrics({"phase": "load", "model": str(model), "time": time.time()})


def _judge_benchmarks(
    policy: LanguageModel,
    model: Path,
    suites: Mapping[str, Suite | GenerationSuite],
    config: EvaluationConfig,
    results: Results,
    progress: Progress,
) -> dict[str, int]:
    """Add the result of every suite of choices; return how many items of each had to be cut."""
    tokenizer = load_tokenizer(model)
    num_truncated = {}
    for name, suite in suites.items():
        if isinstance(suite, GenerationSuite):
            continue
        encoded = encode_requests(tokenizer, suite.requests(), max_length=config.max_length)
        progress.begin(name, suite.num_items)
        logprobs = policy.score(
            encoded.trees, max_tokens=config.microbatch_tokens, progress=progress.advance
        )
        results.add(name, suite.result(logprobs), suite.num_items)
        num_truncated[name] = encoded.num_truncated
    return num_truncated


def _judge_pairs(
    policy: LanguageModel,
    parent: LanguageModel | None,
    held_out: _HeldOut,
    config: EvaluationConfig,
    results: Results,
    progress: Progress,
) -> None:
    pairs, num_pairs = held_out.pairs, len(held_out.pairs.trees)
    if not num_pairs:
        return
    progress.begin("preference", num_pairs)
    measures = preferences.measure_pairs(
        policy,
        parent,
        pairs.trees,
        max_tokens=config.microbatch_tokens,
        progress=progress.advance,
    )
    result = preferences.preference_result(measures, pairs.items, beta=config.implicit_reward_beta)
    results.add("preference", result, num_pairs)
    results.add("perplexity", preferences.perplexity_result(measures, pairs.items), num_pairs)
    if parent is not None:
        results.add("kl", preferences.kl_result(measures, pairs.items), num_pairs)


def _answer(
    policy: LanguageModel, held_out: _HeldOut, config: EvaluationConfig, progress: Progress
) -> list[SampleAnswer]:
    if not held_out.prompts:
        return []
    progress.begin("samples", len(held_out.prompts))
    return answer_prompts(
        policy,
        held_out.chat,
        held_out.prompts,
        max_new_tokens=config.max_new_tokens,
        progress=progress.advance,
        ask=held_out.steering.prompt if held_out.steering else list,
    )


def _answer_steered(
    policy: LanguageModel, held_out: _HeldOut, config: EvaluationConfig, progress: Progress
) -> dict[str, SteeredAnswers]:
    steering, prompts = held_out.steering, held_out.steering_prompts
    if steering is None or not prompts:
        return {}
    total = num_answers(steering, config.steered_attributes, len(prompts))
    progress.begin("steerlm", total)
    return answer_steered(
        policy,
        held_out.chat,
        prompts,
        steering,
        config.steered_attributes,
        max_new_tokens=config.max_new_tokens,
        progress=progress.advance,
    )


def _judge_by_reward(
    reward: RewardModel,
    held_out: _HeldOut,
    samples: list[SampleAnswer],
    config: EvaluationConfig,
    results: Results,
    progress: Progress,
) -> list[SampleAnswer]:
    """Add the accuracy on pairs and the mean reward of the samples; return the samples with it."""
    pairs = held_out.plain_pairs
    if pairs.trees:
        progress.begin("reward_model", len(pairs.trees))
        rewards = reward.score(
            pairs.trees, max_tokens=config.microbatch_tokens, progress=progress.advance
        )
        result = preferences.reward_result(rewards, pairs.items)
        results.add("reward_model", result, len(pairs.trees))
    for name, pairs in held_out.pair_sets.items():
        progress.begin(name, len(pairs.trees))
        rewards = reward.score(
            pairs.trees, max_tokens=config.microbatch_tokens, progress=progress.advance
        )
        results.add(name, preferences.pair_set_result(rewards, pairs), len(pairs.trees))
    if not samples:
        return samples
    judged = with_rewards(
        reward,
        held_out.chat,
        samples,
        max_tokens=config.microbatch_tokens,
        progress=lambda _, num_tokens: progress.advance(0, num_tokens),  # they are counted already
    )
    results.add("samples", sample_result(judged), len(judged))
    return judged


def _rate(
    attributes: AttributeModel,
    held_out: _HeldOut,
    samples: list[SampleAnswer],
    steered: Mapping[str, SteeredAnswers],
    config: EvaluationConfig,
    results: Results,
    progress: Progress,
) -> list[SampleAnswer]:
    """Add the mean ratings of the samples, and what steering does; return the samples rated."""

    def tell(_: int, num_tokens: int) -> None:
        progress.advance(0, num_tokens)  # the answers are counted already

    if steered:
        rated = rate_steered(
            attributes,
            held_out.chat,
            steered,
            max_tokens=config.microbatch_tokens,
            progress=tell,
        )
        results.add("steerlm", steering_result(rated), len(held_out.steering_prompts))
    if not samples:
        return samples
    judged = with_ratings(
        attributes, held_out.chat, samples, max_tokens=config.microbatch_tokens, progress=tell
    )
    results.add("samples", rating_result(judged, attributes.scale.names), len(judged))
    return judged
