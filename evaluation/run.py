"""One evaluation job: a model, judged on benchmarks, held-out pairs and sample answers."""

import os
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from alignflow.evaluation import preferences
from alignflow.evaluation.choices import encode_requests
from alignflow.evaluation.config import EvaluationConfig, EvaluationJob
from alignflow.evaluation.held_out import HeldOut
from alignflow.evaluation.pair_sets import read_pair_set
from alignflow.evaluation.progress import Progress
from alignflow.evaluation.results import Results, write_jsonl
from alignflow.evaluation.samples import (
    SampleAnswer,
    answer_prompts,
    rating_result,
    sample_result,
    with_ratings,
    with_rewards,
)
from alignflow.evaluation.sharing import SharedWork
from alignflow.evaluation.steering import (
    SteeredAnswers,
    answer_steered,
    num_answers,
    rate_steered,
    steering_result,
)
from alignflow.evaluation.suite_judges import distrust_weak, load_judges, save_cards
from alignflow.evaluation.suites import load_suite
from alignflow.evaluation.suites.base import ChoiceRequest, Suite
from alignflow.evaluation.writing import Writer
from alignflow.jobs.run_folder import RunFolder
from alignflow.jobs.spec import JobResult
from alignflow.training.config import ParallelConfig
from alignflow.training.megatron.architecture import check_positions
from alignflow.training.megatron.inference import LanguageModel
from alignflow.training.megatron.judges import AttributeModel, RewardModel
from alignflow.training.steering import Steering, label
from alignflow.training.tokenizer import load_tokenizer

ModelT = TypeVar("ModelT", LanguageModel, RewardModel, AttributeModel)


def evaluate(job: EvaluationJob, folder: RunFolder) -> JobResult:
    """Judge the model and write scores, items and sample answers to the job's output.

    Raises:
        ConfigError: Sequences may be longer than a model's positions.
        DataError: A benchmark file, the held-out pairs or a model folder can't be used.
    """
    config = job.evaluation
    # Files are read before models: what is wrong with them shows in the first second.
    judges = load_judges(job)
    suites = {
        name: load_suite(suite.suite, Path(suite.data), limit=suite.limit, judges=judges[name])
        for name, suite in config.suites.items()
    }
    pair_sets = {
        name: read_pair_set(Path(pairs.data), pairs.limit)
        for name, pairs in config.pair_sets.items()
    }
    steering = Steering.load(job.model)
    _check_lengths(job, steering)
    is_main = os.environ.get("RANK", "0") == "0"
    held_out = HeldOut.load(job, steering, pair_sets)
    progress = Progress(folder, _num_steps(job, suites, held_out), tells=is_main)
    results = Results(
        folder.output if is_main else None,
        limited=_limited(config, suites, pair_sets, held_out),
    )
    if is_main:
        save_cards(judges, folder.output)
    distrust_weak(judges, config, results)

    policy = _load(LanguageModel, job.model, config, folder)
    work = SharedWork(folder.path / "answers", progress)
    num_truncated = _judge_benchmarks(
        policy, job.model, suites, config, results, work, steering=steering
    )
    samples: list[SampleAnswer] = []
    steered: dict[str, SteeredAnswers] = {}
    if held_out is not None:
        num_truncated["preference"] = held_out.pairs.num_truncated
        num_truncated |= {name: of.num_truncated for name, of in held_out.pair_sets.items()}
        parent = (
            _load(LanguageModel, job.parent, config, folder) if job.parent is not None else None
        )
        _judge_pairs(policy, parent, held_out, config, results, work)
        # A few answers, in one batch as a rule; the other ranks wait for it.
        if is_main:
            samples = _answer(policy, held_out, config, progress)
            steered = _answer_steered(policy, held_out, config, progress)
        del parent
    del policy
    if held_out is not None and job.reward_model is not None:
        reward = _load(RewardModel, job.reward_model, config, folder)
        _judge_reward_model(reward, held_out, config, results, work)
        samples = _reward_samples(reward, held_out, samples, config, results, progress)
        del reward
    if held_out is not None and job.attribute_model is not None:
        attributes = _load(AttributeModel, job.attribute_model, config, folder)
        samples = _rate(attributes, held_out, samples, steered, config, results, progress)

    if is_main:
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


def _check_lengths(job: EvaluationJob, steering: Steering | None) -> None:
    """Check that each model has positions for what it will be given: scored rows, and answers."""
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


def _limited(
    config: EvaluationConfig,
    suites: Mapping[str, Suite],
    pair_sets: Mapping[str, Sequence[Mapping[str, Any]]],
    held_out: HeldOut | None,
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


def _num_steps(job: EvaluationJob, suites: Mapping[str, Suite], held_out: HeldOut | None) -> int:
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


def _load(kind: type[ModelT], model: Path, config: EvaluationConfig, folder: RunFolder) -> ModelT:
    """Load a model, on each rank the whole of it."""
    if os.environ.get("RANK", "0") == "0":
        folder.append_metrics({"phase": "load", "model": str(model), "time": time.time()})
    parallel = ParallelConfig(data_parallel_size=config.data_parallel_size)
    return kind.load(model, precision=config.precision, parallel=parallel)


def _judge_benchmarks(
    policy: LanguageModel,
    model: Path,
    suites: Mapping[str, Suite],
    config: EvaluationConfig,
    results: Results,
    work: SharedWork,
    *,
    steering: Steering | None,
) -> dict[str, int]:
    """Add the result of every suite; return how many items of each had to be cut."""
    tokenizer = load_tokenizer(model)
    writer = Writer(policy, model, config, steering=steering)
    num_truncated = {}
    for name, suite in suites.items():
        requests = suite.requests()
        choices = [request for request in requests if isinstance(request, ChoiceRequest)]
        texts = [request for request in requests if not isinstance(request, ChoiceRequest)]
        if texts:
            asked = writer.encode(texts)
            num_truncated[name] = asked.num_truncated
            write = partial(writer.passes, stop_tokens=asked.stop_tokens)
            answers = asked.in_order(work.collect(name, asked.prompts, write))
        else:
            encoded = encode_requests(tokenizer, choices, max_length=config.max_length)
            num_truncated[name] = encoded.num_truncated
            score = partial(policy.passes, max_tokens=config.microbatch_tokens)
            answers = work.collect(name, encoded.trees, score)
        results.add(name, suite.result(answers), suite.num_items)
    return num_truncated


def _judge_pairs(
    policy: LanguageModel,
    parent: LanguageModel | None,
    held_out: HeldOut,
    config: EvaluationConfig,
    results: Results,
    work: SharedWork,
) -> None:
    pairs, num_pairs = held_out.pairs, len(held_out.pairs.trees)
    if not num_pairs:
        return
    measure = partial(preferences.pair_passes, policy, parent, max_tokens=config.microbatch_tokens)
    rows = work.collect("preference", pairs.trees, measure)
    measures = preferences.PairMeasures.of_rows(rows)
    result = preferences.preference_result(measures, pairs.items, beta=config.implicit_reward_beta)
    results.add("preference", result, num_pairs)
    results.add("perplexity", preferences.perplexity_result(measures, pairs.items), num_pairs)
    if parent is not None:
        results.add("kl", preferences.kl_result(measures, pairs.items), num_pairs)


def _answer(
    policy: LanguageModel, held_out: HeldOut, config: EvaluationConfig, progress: Progress
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
    policy: LanguageModel, held_out: HeldOut, config: EvaluationConfig, progress: Progress
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


def _judge_reward_model(
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


def _reward_samples(
    reward: RewardModel,
    held_out: HeldOut,
    samples: list[SampleAnswer],
    config: EvaluationConfig,
    results: Results,
    progress: Progress,
) -> list[SampleAnswer]:
    """Add the mean reward of the samples; return the samples with it."""
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
    held_out: HeldOut,
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
