"""Judges as stages: taken from the store or a folder, or trained in the run."""

import shutil
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from prefect import task

from alignflow.artifacts import Artifact
from alignflow.artifacts.files import list_files
from alignflow.errors import DataError
from alignflow.evaluation.config import EvaluationConfig
from alignflow.evaluation.judges.card import JudgeCard
from alignflow.evaluation.judges.config import (
    JUDGE_FOLDER,
    ClassifierJob,
    ClassifierSettings,
    DataFile,
    HubJudge,
    JudgeQuality,
    JudgeTask,
    LocalJudge,
    TrainedJudge,
)
from alignflow.evaluation.judges.files import JUDGE_KIND, REVISION, fetch_training
from alignflow.model_source import check_copy, resolve_model
from alignflow.sources import fetch_file, file_sha256
from alignflow.tasks.jobs import run_job
from alignflow.tasks.pipeline import Pipeline, Stage, StageOutput, run_stage
from alignflow.tasks.retries import STAGE_TASK
from alignflow.tasks.tracking import StageRun

JudgeName = tuple[str, JudgeTask]
"""A suite, and what the judge says of its answers."""


def judge_stage(name: JudgeName) -> str:
    """Return the name of the stage that makes a judge."""
    suite, task_name = name
    return f"judge-{suite}-{task_name}"


def suite_of_stage(stage_name: str) -> str:
    """Return the suite whose judge a stage of `judge_stage` makes."""
    return stage_name.removeprefix("judge-").rpartition("-")[0]


def asked_of_judges(config: EvaluationConfig) -> dict[str, dict[str, Any]]:
    """Return what quality each judge must have; who it is, is a parent of the evaluation."""
    return {
        judge_stage((suite, task_name)): judge.model_dump(include=set(JudgeQuality.model_fields))
        for suite, settings in config.suites.items()
        for task_name, judge in settings.judges.items()
    }


@task(task_run_name="judge-{name[0]}-{name[1]}", **STAGE_TASK)
def provide_judge(pipeline: Pipeline, name: JudgeName) -> Artifact:
    """Return a judge that the recipe names, as an artifact.

    Raises:
        DataError: What is named is no judge of this kind, or its data can't be used.
        StoreError: The store doesn't hold it.
    """
    suite, task_name = name
    config = pipeline.recipe.evaluation.suites[suite].judges[task_name]
    if isinstance(config, TrainedJudge):
        return _train(pipeline, judge_stage(name), config)
    if isinstance(config, HubJudge):
        return _adopt(pipeline, name, config)
    return _take(pipeline, name, config)


def _train(pipeline: Pipeline, stage_name: str, config: TrainedJudge) -> Artifact:
    fetched = fetch_training(config.training, pipeline.cache)
    stage = Stage(name=stage_name, kind=JUDGE_KIND, config=fetched.identity, revision=REVISION)

    def compute(run: StageRun, scratch: Path) -> StageOutput:
        details = {"sources": fetched.sources}
        if fetched.job is not None:
            output = run_job(
                pipeline,
                stage=stage.name,
                key=stage.key,
                module="alignflow.evaluation.judges.reading",
                config=fetched.job.model_dump(mode="json"),
                num_processes=1,
                run=run,
            )
            made = output.folder / JUDGE_FOLDER
            return replace(output, folder=made, details={**output.details, **details})
        # Imported here: scikit-learn takes a second that no other stage needs.
        from alignflow.evaluation.judges.train import train_judge

        card = train_judge(fetched.config, fetched.files, scratch)
        return StageOutput(scratch, card.metrics, details=details)

    return run_stage(pipeline, stage, compute)


def _adopt(pipeline: Pipeline, name: JudgeName, config: HubJudge) -> Artifact:
    """Measure a classifier from elsewhere, in a job, because that loads it."""
    source = resolve_model(config.model, revision=config.revision, cache=pipeline.cache)
    labelled = fetch_file(config.labelled, pipeline.cache)
    settings = ClassifierSettings.model_validate(
        config.model_dump(include=set(ClassifierSettings.model_fields))
    )
    determines = settings.model_dump(exclude={"labelled"})
    stage = Stage(
        name=judge_stage(name),
        kind=JUDGE_KIND,
        config={**determines, "model": dict(source.identity), "labelled": labelled.sha256},
        revision=REVISION,
    )

    def compute(run: StageRun, _scratch: Path) -> StageOutput:
        job = ClassifierJob(
            task=name[1],
            model=source.path,
            settings=settings.replaced(labelled=str(labelled.path)),
            file=DataFile(
                role="data", name=PurePosixPath(labelled.uri).name, sha256=labelled.sha256
            ),
        )
        output = run_job(
            pipeline,
            stage=stage.name,
            key=stage.key,
            module="alignflow.evaluation.judges",
            config=job.model_dump(mode="json"),
            num_processes=1,
            run=run,
        )
        made = output.folder / JUDGE_FOLDER
        check_copy(source, made)
        sources = [
            {"uri": f"{config.model}#{file}", "sha256": digest}
            for file, digest in source.identity.items()
        ]
        sources.append({"uri": labelled.uri, "sha256": labelled.sha256})
        return replace(output, folder=made, details={**output.details, "sources": sources})

    return run_stage(pipeline, stage, compute)


def _take(pipeline: Pipeline, name: JudgeName, config: LocalJudge) -> Artifact:
    """Put a judge under this run's stage, whether it comes from a folder or from the store."""
    suite, task_name = name
    place = f"evaluation.suites.{suite}.judges.{task_name}.source"
    folder = Path(config.source).expanduser()
    if not folder.is_dir():
        artifact = pipeline.store.get(config.source)
        folder = pipeline.local(artifact)
    card = JudgeCard.load(folder)
    if card.task != task_name:
        raise DataError(f"{place}: {config.source} is a judge of {card.task}, not of {task_name}.")
    names = [name for name in list_files(folder) if name != "manifest.json"]
    identity = {name: file_sha256(folder / name) for name in names}
    stage = Stage(
        name=judge_stage(name), kind=JUDGE_KIND, config={"files": identity}, revision=REVISION
    )

    def compute(_run: StageRun, scratch: Path) -> StageOutput:
        for name in names:
            (scratch / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, scratch / name)
        sources = [{"uri": str(folder / name), "sha256": identity[name]} for name in names]
        return StageOutput(scratch, card.metrics, details={"sources": sources})

    return run_stage(pipeline, stage, compute)
