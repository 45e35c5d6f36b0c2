"""Models from elsewhere as tasks: whatever the source, a Hugging Face folder in the store."""

from dataclasses import replace
from pathlib import Path

from prefect import task

from alignflow.artifacts import Artifact
from alignflow.errors import DataError
from alignflow.evaluation.answer_judge.config import AnswerJudgeConfig
from alignflow.fingerprints import folder_fingerprints
from alignflow.jobs.run_folder import write_atomically
from alignflow.model_source import (
    ModelConfig,
    ModelSource,
    check_copy,
    copy_model,
    read_model_class,
    read_template,
    resolve_model,
)
from alignflow.tasks.jobs import run_job
from alignflow.tasks.pipeline import Pipeline, Stage, StageOutput, run_stage
from alignflow.tasks.retries import STAGE_TASK
from alignflow.tasks.tracking import StageRun

# Raised by a commit that changes what the stage makes: `alignflow.artifacts.code_version`.
_REVISION = 1


@task(task_run_name="model", **STAGE_TASK)
def import_model(pipeline: Pipeline) -> Artifact:
    """Return the base model as a Hugging Face folder in the store.

    Raises:
        DataError: The source is no model that alignflow can read.
    """
    return _import(pipeline, "model", "model", pipeline.recipe.model, place="model")


@task(task_run_name="answer-judge", **STAGE_TASK)
def import_answer_judge(pipeline: Pipeline, config: AnswerJudgeConfig) -> Artifact:
    """Return the judge of answers as a Hugging Face folder in the store.

    Raises:
        DataError: The source is no model that alignflow can read.
    """
    place = "evaluation.answer_judge.model"
    return _import(pipeline, "answer-judge", "answer_judge", config.model, place=place)


def _import(
    pipeline: Pipeline, name: str, kind: str, config: ModelConfig, *, place: str
) -> Artifact:
    """Return a model as an artifact of this kind; `place` is where the recipe names it."""
    source = resolve_model(config.source, revision=config.revision, cache=pipeline.cache)
    template = read_template(config.chat_template)
    stage = Stage(
        name=name,
        kind=kind,
        config={"files": dict(source.identity), "chat_template": template},
        revision=_REVISION,
    )

    def compute(run: StageRun, scratch: Path) -> StageOutput:
        if not source.is_gguf:
            copied = copy_model(source.path, scratch / "model")
            check_copy(source, copied)
            return _described(StageOutput(copied), template, config, source, place)
        output = run_job(
            pipeline,
            stage=name,
            key=stage.key,
            module="alignflow.training.import_gguf",
            config={"file": str(source.path)},
            num_processes=1,
            run=run,
        )
        check_copy(source, source.path.parent)
        return _described(output, template, config, source, place)

    return run_stage(pipeline, stage, compute)


def _described(
    output: StageOutput,
    template: str | None,
    config: ModelConfig,
    source: ModelSource,
    place: str,
) -> StageOutput:
    """Add the chat template that the recipe names, and the fingerprints."""
    if template is not None:
        # Replaced, not written to: it may share its bytes with an artifact.
        write_atomically(output.folder / "chat_template.jinja", template)
    prints = folder_fingerprints(output.folder)
    if prints.chat_template is None:
        raise DataError(
            f"{place}.source: {config.source} has no chat template; name one in "
            f"{place}.chat_template."
        )
    return replace(
        output,
        details={
            **output.details,
            "architecture": read_model_class(output.folder),
            "sources": [
                {"uri": f"{config.source}#{name}", "sha256": digest}
                for name, digest in source.identity.items()
            ],
        },
        tokenizer=prints.tokenizer,
        chat_template=prints.chat_template,
    )
