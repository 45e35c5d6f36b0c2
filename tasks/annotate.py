"""Rating demonstrations by an attribute model as a task: a job in, a dataset out."""

from prefect import task

from alignflow.artifacts import Artifact
from alignflow.tasks.jobs import run_as_job
from alignflow.tasks.pipeline import Pipeline, Stage
from alignflow.tasks.retries import STAGE_TASK
from alignflow.training.annotate import AnnotationJob
from alignflow.training.config import AnnotationConfig

# Raised by a commit that changes what the stage makes: `alignflow.artifacts.code_version`.
_REVISION = 1


@task(task_run_name="annotated", **STAGE_TASK)
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

    def job() -> AnnotationJob:
        return AnnotationJob(
            annotation=config,
            model=pipeline.local(attribute_model),
            demonstrations=pipeline.local(demonstrations),
            rated=pipeline.local(rated),
        )

    return run_as_job(pipeline, stage, "alignflow.training.annotate", job)
