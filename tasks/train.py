"""Training stages as tasks: a job in, a model artifact out."""

from dataclasses import replace
from pathlib import Path

from prefect import task

from alignflow.artifacts import Artifact
from alignflow.fingerprints import Fingerprints, check_same, folder_fingerprints
from alignflow.tasks.jobs import run_job
from alignflow.tasks.pipeline import Pipeline, Stage, StageOutput, run_stage
from alignflow.tasks.retries import STAGE_TASK
from alignflow.tasks.tracking import StageRun
from alignflow.training.config import StageConfig, TrainingJob

# Raised by a commit that changes what a stage makes: `alignflow.artifacts.code_version`.
_REVISIONS = {
    "sft": 2,
    "reward_model": 2,
    "dpo": 2,
    "ppo": 1,
    "attribute_model": 1,
    "steerlm": 1,
    "steerlm2": 1,
}


@task(task_run_name="{name}", **STAGE_TASK)
def train_stage(
    pipeline: Pipeline,
    name: str,
    config: StageConfig,
    model: Artifact,
    dataset: Artifact,
    *,
    reward_model: Artifact | None = None,
    attribute_model: Artifact | None = None,
    prior_model: Artifact | None = None,
) -> Artifact:
    """Train one stage from a parent model and return the model it made.

    Raises:
        ConfigError: The model that it made, or one that judges it, has another tokenizer or chat
            template than its parent.
        JobError: The job failed.
    """
    given = {
        "reward_model": reward_model,
        "attribute_model": attribute_model,
        "prior_model": prior_model,
    }
    judges = {role: artifact for role, artifact in given.items() if artifact is not None}
    stage = Stage(
        name=name,
        kind=config.stage,
        config=config.identity(),
        revision=_REVISIONS[config.stage],
        parents={
            "model": model,
            "dataset": dataset,
            **judges,
        },
    )

    def compute(run: StageRun, _scratch: Path) -> StageOutput:
        folder = pipeline.local(model)
        recorded = fingerprints_of(model)
        check_same(
            f"the files of {model.kind}", folder_fingerprints(folder), "its record", recorded
        )
        for judge in judges.values():
            check_same(model.kind, recorded, judge.kind, fingerprints_of(judge))
        job = TrainingJob(
            stage=config,
            model=folder,
            dataset=pipeline.local(dataset),
            **{role: pipeline.local(judge) for role, judge in judges.items()},
        )
        output = run_job(
            pipeline,
            stage=name,
            key=stage.key,
            module="alignflow.training",
            config=job.model_dump(mode="json"),
            num_processes=config.parallel.world_size,
            run=run,
            kind=config.stage,
        )
        made = folder_fingerprints(output.folder)
        check_same(name, made, model.kind, recorded)
        return replace(output, tokenizer=made.tokenizer, chat_template=made.chat_template)

    return run_stage(pipeline, stage, compute)


def fingerprints_of(artifact: Artifact) -> Fingerprints:
    """Return the fingerprints that a model artifact's manifest records."""
    return Fingerprints(
        tokenizer=artifact.manifest.tokenizer, chat_template=artifact.manifest.chat_template
    )
