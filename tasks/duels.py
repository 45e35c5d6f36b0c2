"""The judge of answers as a task: a language model compares what the models of a run answered."""

from collections.abc import Mapping
from pathlib import Path

from prefect import task

from alignflow.artifacts import Artifact
from alignflow.errors import AlignflowError
from alignflow.evaluation.answer_judge.config import AnswerJudgeConfig, AnswerJudgeJob
from alignflow.tasks.evaluate import champion_evaluation
from alignflow.tasks.jobs import run_as_job
from alignflow.tasks.logs import run_logger
from alignflow.tasks.pipeline import Pipeline, Stage
from alignflow.tasks.retries import STAGE_TASK
from alignflow.tasks.tracking import RegisteredVersion

# Raised by a commit that changes what the stage makes: `alignflow.artifacts.code_version`.
_REVISION = 1


@task(task_run_name="duels", **STAGE_TASK)
def judge_answers(
    pipeline: Pipeline,
    config: AnswerJudgeConfig,
    judge: Artifact,
    *,
    evaluations: Mapping[str, Artifact],
    champion: RegisteredVersion | None,
    preferences: Artifact,
) -> Artifact:
    """Have the aligned model's sample answers compared with those of each other model.

    Args:
        pipeline: The run.
        config: How the judge is asked.
        judge: Its model.
        evaluations: Evaluation artifacts of `base`, `sft` and `aligned`.
        champion: The version that serves now, if there is one; it is left out where its evaluation
            can't be had.
        preferences: Dataset artifact on whose held-out pairs the judge is measured.

    Raises:
        JobError: The job failed.
    """
    compared = dict(evaluations)
    folders: dict[str, Path] = {}
    if champion is not None:
        try:
            compared["champion"], folders["champion"] = champion_evaluation(
                champion, pipeline.cache, pipeline.store.url
            )
        except AlignflowError as error:
            run_logger().warning("The champion's answers can't be compared with: %s", error)
    of_evaluations = pipeline.recipe.evaluation
    precision, microbatch_tokens = of_evaluations.precision, of_evaluations.microbatch_tokens
    stage = Stage(
        name="duels",
        kind="duels",
        config={
            # Who the judge is, is a parent.
            "answer_judge": config.model_dump(mode="json", exclude={"model"}),
            "precision": precision,
            "microbatch_tokens": microbatch_tokens,
        },
        revision=_REVISION,
        parents={**compared, "answer_judge": judge, "preferences": preferences},
    )

    def job() -> AnswerJudgeJob:
        local = {name: pipeline.local(evaluation) for name, evaluation in evaluations.items()}
        return AnswerJudgeJob(
            judge=config,
            model=pipeline.local(judge),
            evaluations={**local, **folders},
            preferences=pipeline.local(preferences),
            precision=precision,
            microbatch_tokens=microbatch_tokens,
        )

    return run_as_job(pipeline, stage, "alignflow.evaluation.answer_judge", job)
