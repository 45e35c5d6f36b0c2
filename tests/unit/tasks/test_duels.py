"""Whose answers a judge compares: those of the run's models, and of a champion that can be read."""

from pathlib import Path
from typing import Any

import pytest

from alignflow.artifacts import Artifact, code_version, stage_key
from alignflow.evaluation.answer_judge.config import AnswerJudgeConfig, AnswerJudgeJob
from alignflow.jobs.run_folder import RunFolder
from alignflow.jobs.spec import JobSpec
from alignflow.tasks.duels import judge_answers
from alignflow.tasks.pipeline import Pipeline
from alignflow.tasks.tracking import RegisteredVersion

JUDGE = AnswerJudgeConfig.model_validate({"model": {"source": "org/judge"}, "max_pairs": 7})


class SubmittedError(Exception):
    """Tells what was submitted."""


class Cluster:
    """Takes a job and starts nothing."""

    def submit(self, spec: JobSpec, folder: RunFolder) -> Any:
        raise SubmittedError(spec)

    def find(self, folder: RunFolder) -> None:
        return None


def published(pipeline: Pipeline, name: str) -> Artifact:
    folder = pipeline.workspace / name
    folder.mkdir(parents=True)
    (folder / "name").write_text(name)
    version = code_version(1)
    key = stage_key("evaluation", {"name": name}, {}, version)
    return pipeline.store.publish(folder, kind="evaluation", key=key, code_version=version)


def submitted(pipeline: Pipeline, champion: RegisteredVersion | None) -> AnswerJudgeJob:
    pipeline.launcher = Cluster()
    names = ("base", "sft", "aligned", "judge", "preferences")
    made = {name: published(pipeline, name) for name in names}
    evaluations = {name: made[name] for name in ("base", "sft", "aligned")}
    with pytest.raises(SubmittedError) as told:
        judge_answers.fn(
            pipeline,
            JUDGE,
            made["judge"],
            evaluations=evaluations,
            champion=champion,
            preferences=made["preferences"],
        )
    spec: JobSpec = told.value.args[0]
    assert spec.module == "alignflow.evaluation.answer_judge"
    return AnswerJudgeJob.model_validate(spec.config)


def named(folder: Path) -> str:
    return (folder / "name").read_text()


def test_answers_of_the_champion_are_compared_too(pipeline: Pipeline) -> None:
    digest = published(pipeline, "champion").digest
    tags = {"alignflow.evaluation": digest}
    job = submitted(pipeline, RegisteredVersion("assistant", "3", tags, ("champion",)))
    found = {name: named(folder) for name, folder in job.evaluations.items()}
    assert found == {name: name for name in ("base", "sft", "aligned", "champion")}
    assert (named(job.model), named(job.preferences)) == ("judge", "preferences")
    assert job.judge == JUDGE
    assert job.precision == pipeline.recipe.evaluation.precision


@pytest.mark.parametrize("champion", [None, RegisteredVersion("assistant", "3", {}, ("champion",))])
def test_a_champion_that_cannot_be_read_is_left_out(
    pipeline: Pipeline, champion: RegisteredVersion | None
) -> None:
    assert submitted(pipeline, champion).evaluations.keys() == {"base", "sft", "aligned"}
