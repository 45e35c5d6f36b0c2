"""Evaluation and gate as tasks: one job a model, then scores to a verdict."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from alignflow.artifacts import Artifact, ArtifactStore
from alignflow.errors import AlignflowError, ConfigError
from alignflow.evaluation.config import EvaluationJob
from alignflow.evaluation.gate import Verdict, judge
from alignflow.evaluation.judges.config import JudgeTask
from alignflow.evaluation.judges.files import JUDGE_KIND
from alignflow.fingerprints import check_same
from alignflow.tasks.data import only_file
from alignflow.tasks.jobs import run_job
from alignflow.tasks.judges import JudgeName, asked_of_judges, judge_stage, suite_of_stage
from alignflow.tasks.logs import run_logger
from alignflow.tasks.pipeline import Pipeline, Stage, StageOutput, run_stage
from alignflow.tasks.tracking import RegisteredVersion, StageRun
from alignflow.tasks.train import fingerprints_of, job_was_lost

# Raised by a commit that changes what a stage makes: `alignflow.artifacts.code_version`.
_EVALUATION_REVISION = 5
_GATE_REVISION = 2


@task(
    task_run_name="evaluate-{name}",
    tags=["evaluation", "job"],
    cache_policy=NO_CACHE,
    retries=2,  # a recipe may say otherwise
    retry_delay_seconds=[10, 60],
    retry_condition_fn=job_was_lost,
)
def evaluate_model(
    pipeline: Pipeline,
    name: str,
    model: Artifact,
    *,
    parent: Artifact | None,
    reward_model: Artifact,
    attribute_model: Artifact | None = None,
    preferences: Artifact,
    benchmarks: Mapping[str, Artifact],
    judges: Mapping[JudgeName, Artifact],
) -> Artifact:
    """Judge one model on every suite of the recipe.

    Raises:
        ConfigError: Another model, such as the parent, has another tokenizer or chat template.
        JobError: The job failed.
    """
    stage_name = f"evaluate-{name}"
    config = pipeline.recipe.evaluation
    parents = {
        "model": model,
        **({"parent": parent} if parent is not None else {}),
        "reward_model": reward_model,
        **({"attribute_model": attribute_model} if attribute_model is not None else {}),
        "preferences": preferences,
        **{f"benchmark-{suite}": artifact for suite, artifact in benchmarks.items()},
        **{judge_stage(name): artifact for name, artifact in judges.items()},
    }
    # Where a benchmark's file came from is no part of the result; its content is, as a parent.
    resolved = config.model_dump(mode="json", exclude={"suites": {"__all__": {"data", "judges"}}})
    resolved["judges"] = asked_of_judges(config)
    stage = Stage(
        name=stage_name,
        kind="evaluation",
        config=resolved,
        revision=_EVALUATION_REVISION,
        parents=parents,
    )

    def compute(run: StageRun, _scratch: Path) -> StageOutput:
        for other in (parent, reward_model, attribute_model):
            if other is not None:
                check_same(model.kind, fingerprints_of(model), other.kind, fingerprints_of(other))
        suites = {
            suite: settings.replaced(data=str(only_file(pipeline.local(benchmarks[suite]))))
            for suite, settings in config.suites.items()
        }
        job = EvaluationJob(
            evaluation=config.replaced(suites=suites),
            model=pipeline.local(model),
            parent=pipeline.local(parent) if parent is not None else None,
            reward_model=pipeline.local(reward_model),
            attribute_model=(
                pipeline.local(attribute_model) if attribute_model is not None else None
            ),
            judges=_folders(pipeline, judges),
            preferences=pipeline.local(preferences),
        )
        return run_job(
            pipeline,
            stage=stage_name,
            key=stage.key,
            module="alignflow.evaluation",
            config=job.model_dump(mode="json"),
            num_processes=1,
            run=run,
        )

    return run_stage(pipeline, stage, compute)


def _folders(
    pipeline: Pipeline, judges: Mapping[JudgeName, Artifact]
) -> dict[str, dict[JudgeTask, Path]]:
    folders: dict[str, dict[JudgeTask, Path]] = {}
    for (suite, task_name), artifact in judges.items():
        folders.setdefault(suite, {})[task_name] = pipeline.local(artifact)
    return folders


@task(task_run_name="gate", tags=["verdict"], cache_policy=NO_CACHE)
def judge_model(
    pipeline: Pipeline,
    evaluations: Mapping[str, Artifact],
    champion: RegisteredVersion | None,
) -> tuple[Verdict, Artifact]:
    """Turn the scores of the models, and the champion's, into a verdict.

    Args:
        pipeline: The run.
        evaluations: Evaluation artifacts of `base`, `sft` and `aligned`.
        champion: The version that serves now, if there is one.
    """
    parents = dict(evaluations)
    # A champion whose scores can't be had compares with nothing: rules about it fail.
    champion_scores: Mapping[str, float | None] | None = None if champion is None else {}
    config = pipeline.recipe.gate
    determines = config.model_dump(mode="json")
    if champion is not None:
        try:
            parents["champion"], champion_scores = champion_evaluation(pipeline, champion)
            champion_scores = comparable_scores(
                evaluations["aligned"], parents["champion"], champion_scores
            )
        except AlignflowError as error:
            run_logger().warning("The champion can't be compared with: %s", error)
            determines["unread_champion"] = champion.uri
    stage = Stage(
        name="gate",
        kind="verdict",
        config=determines,
        revision=_GATE_REVISION,
        parents=parents,
    )

    def compute(_run: StageRun, scratch: Path) -> StageOutput:
        scores = {
            role: read_scores(pipeline.local(artifact))["scores"]
            for role, artifact in evaluations.items()
        }
        weak_judges = read_scores(pipeline.local(evaluations["aligned"]))["weak_judges"]
        verdict = judge(config, {**scores, "champion": champion_scores}, weak_judges=weak_judges)
        (scratch / "verdict.json").write_text(verdict.to_json())
        return StageOutput(scratch, metrics={"gate/passed": float(verdict.passed)})

    artifact = run_stage(pipeline, stage, compute)
    text = (pipeline.local(artifact) / "verdict.json").read_text()
    return Verdict.from_json(text), artifact


def champion_evaluation(
    pipeline: Pipeline, champion: RegisteredVersion
) -> tuple[Artifact, dict[str, float | None]]:
    """Return the champion's evaluation and scores, from the store that its run used.

    Raises:
        ConfigError: The version names no evaluation.
        StoreError: The store can't be read, or doesn't hold the evaluation any more.
        CorruptArtifactError: The evaluation is damaged.
    """
    digest = champion.tags.get("alignflow.evaluation")
    if digest is None:
        raise ConfigError(f"{champion.uri} has no tag alignflow.evaluation.")
    store = ArtifactStore(champion.tags.get("alignflow.store", pipeline.store.url))
    evaluation = store.get(digest)
    scores: dict[str, float | None] = read_scores(store.fetch(evaluation, pipeline.cache))["scores"]
    return evaluation, scores


def comparable_scores(
    evaluation: Artifact, other: Artifact, scores: Mapping[str, float | None]
) -> dict[str, float | None]:
    """Return the other evaluation's scores without those that another judge gave.

    Args:
        evaluation: What is compared.
        other: What it is compared with.
        scores: Those of the other one.
    """
    parents, other_parents = evaluation.manifest.parents, other.manifest.parents
    differing = {
        suite_of_stage(role)
        for role, judge in parents.items()
        if judge.kind == JUDGE_KIND
        and (role not in other_parents or other_parents[role].digest != judge.digest)
    }
    return {name: v for name, v in scores.items() if name.partition("/")[0] not in differing}


def read_scores(folder: Path) -> dict[str, Any]:
    """Return the content of an evaluation artifact's `scores.json`."""
    scores: dict[str, Any] = json.loads((folder / "scores.json").read_text())
    return scores


def read_resamples(folder: Path) -> dict[str, list[float | None]]:
    """Return the scores of an evaluation artifact over resamples of the items."""
    resamples: dict[str, list[float | None]] = json.loads((folder / "resamples.json").read_text())
    return resamples
