"""One evaluation job: a model, judged on benchmarks, held-out pairs and sample answers."""

import os
import time
from pathlib import Path
from typing import TypeVar

from alignflow.evaluation.config import EvaluationConfig, EvaluationJob
from alignflow.evaluation.held_out import HeldOut
from alignflow.evaluation.judge_parts import judge_reward_model, rate, reward_samples
from alignflow.evaluation.pair_sets import read_pair_set
from alignflow.evaluation.plan import check_lengths, limited, num_steps
from alignflow.evaluation.policy_parts import (
    answer,
    answer_steered,
    judge_benchmarks,
    judge_pairs,
)
from alignflow.evaluation.progress import Progress
from alignflow.evaluation.results import Results, write_jsonl
from alignflow.evaluation.samples import SampleAnswer
from alignflow.evaluation.sharing import SharedWork
from alignflow.evaluation.steering import SteeredAnswers
from alignflow.evaluation.suite_judges import distrust_weak, load_judges, save_cards
from alignflow.evaluation.suites import load_suite
from alignflow.jobs.run_folder import RunFolder
from alignflow.jobs.spec import JobResult
from alignflow.training.config import ParallelConfig
from alignflow.training.megatron.inference import LanguageModel
from alignflow.training.megatron.judges import AttributeModel, RewardModel
from alignflow.training.steering import Steering

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
    check_lengths(job, steering)
    is_main = os.environ.get("RANK", "0") == "0"
    held_out = HeldOut.load(job, steering, pair_sets)
    progress = Progress(folder, num_steps(job, suites, held_out), tells=is_main)
    results = Results(
        folder.output if is_main else None,
        limited=limited(config, suites, pair_sets, held_out),
    )
    if is_main:
        save_cards(judges, folder.output)
    distrust_weak(judges, config, results)

    policy = _load(LanguageModel, job.model, config, folder)
    work = SharedWork(folder.path / "answers", progress)
    num_truncated = judge_benchmarks(
        policy, job.model, suites, config, results, work, steering=steering
    )
    num_left_out: dict[str, int] = {}
    samples: list[SampleAnswer] = []
    steered: dict[str, SteeredAnswers] = {}
    if held_out is not None:
        sets = {"preference": held_out.pairs, **held_out.pair_sets}
        num_truncated |= {name: of.num_truncated for name, of in sets.items()}
        num_left_out = {name: of.num_refused for name, of in sets.items()}
        parent = (
            _load(LanguageModel, job.parent, config, folder) if job.parent is not None else None
        )
        judge_pairs(policy, parent, held_out, config, results, work)
        samples = answer(policy, held_out, config, work)
        steered = answer_steered(policy, held_out, config, work)
        del parent
    del policy
    if held_out is not None and job.reward_model is not None:
        reward = _load(RewardModel, job.reward_model, config, folder)
        judge_reward_model(reward, held_out, config, results, work)
        samples = reward_samples(reward, held_out, samples, config, results, work)
        del reward
    if held_out is not None and job.attribute_model is not None:
        attributes = _load(AttributeModel, job.attribute_model, config, folder)
        samples = rate(attributes, held_out, samples, steered, config, results, work)

    if is_main:
        write_jsonl(folder.output / "samples.jsonl", [sample.to_json() for sample in samples])
    results.write(num_truncated, num_left_out)
    refused = held_out.pairs.refused if held_out is not None else []
    return JobResult(
        metrics=results.scores,
        details={
            "num_items": results.num_items,
            "num_truncated": num_truncated,
            "refused_rows": refused,
        },
    )


def _load(kind: type[ModelT], model: Path, config: EvaluationConfig, folder: RunFolder) -> ModelT:
    """Load a model, on each rank the whole of it."""
    if os.environ.get("RANK", "0") == "0":
        folder.append_metrics({"phase": "load", "model": str(model), "time": time.time()})
    parallel = ParallelConfig(data_parallel_size=config.data_parallel_size)
    return kind.load(model, precision=config.precision, parallel=parallel)
