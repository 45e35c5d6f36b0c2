"""Rating demonstrations by an attribute model as a task: a job in, a dataset out."""

from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from alignflow.artifacts import Artifact
from alignflow.tasks.jobs import run_job
from alignflow.tasks.pipeline import Pipeline, Stage, StageOutput, run_stage
from alignflow.tasks.tracking import StageRun
from alignflow.tasks.train import job_was_lost
from alignflow.training.annotate import AnnotationJob
from alignflow.training.config import AnnotationConfig

# Raised by a commit that changes what the stage makes: `alignflow.artifacts.code_version`.
_REVISION = 1


@task(
    task_run_name="annotated",
    tags=["dataset", "job"],
    cache_policy=NO_CACHE,
    retries=2,  # a recipe may say otherwise
    retry_delay_seconds=[10, 60],
    retry_condition_fn=job_was_lost,
)
def annotate_demonstrations(
    pipeline: Pipeline,
    config: AnnotationConfig,
    attribute_model: Artifact,
    *,
    demonstrations: Artifact,
    rated: Artifact,
) -> Artifact:
    """Return the demonstrations, and the answers that people rated, with all of their ratings.

    Raises:
        JobError: The job failed.
    """
    stage = Stage(
        name="annotated",
        kind="dataset",
        config=config.model_dump(mode="json"),
        revision=_REVISION,
        parents={
            "attribute_model": attribute_model,
            "demonstrations": demonstrations,
            "rated": rated,
        },
    )

    def compute(run: StageRun, _scratch: Path) -> StageOutput:
        job = AnnotationJob(
            annotation=config,
            model=pipeline.local(attribute_model),
            demonstrations=pipeline.local(demonstrations),
            rated=pipeline.local(rated),
        )
        return run_job(
            pipeline,
            stage=stage.name,
            key=stage.key,
            module="alignflow.training.annotate",
            config=job.model_dump(mode="json"),
            num_processes=1,
            run=run,
        )

    return run_stage(pipeline, stage, compute)
