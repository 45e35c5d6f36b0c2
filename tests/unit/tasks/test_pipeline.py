"""How a stage is computed or reused, on a real store and MLflow database."""

from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from alignflow.artifacts import Artifact
from alignflow.errors import RunStoppedError
from alignflow.tasks.pipeline import Pipeline, Stage, StageOutput, run_stage
from alignflow.tasks.tracking import StageRun


def test_damage_is_not_published_again_from_the_output_of_the_job(pipeline: Pipeline) -> None:
    stage = Stage(name="sft", kind="sft", config={"seed": 1}, revision=1)
    job = pipeline.job_folder("sft", stage.key)
    written: list[str] = []

    def compute(_run: StageRun, _scratch: Path) -> StageOutput:
        # As a launcher does: a job with a result is not run again.
        if not (job / "result.json").exists():
            (job / "output").mkdir(parents=True)
            (job / "output" / "weights").write_text("sound")
            (job / "result.json").touch()
            written.append("weights")
        return StageOutput(job / "output")

    artifact = run_stage(pipeline, stage, compute)
    weights = pipeline.local(artifact) / "weights"
    weights.chmod(0o644)
    weights.write_text("wrong")
    assert run_stage(pipeline, stage, compute).digest == artifact.digest
    assert (pipeline.local(artifact) / "weights").read_text() == "sound"
    assert written == ["weights", "weights"]


def make_stage(kind: str, **parents: Artifact) -> Stage:
    return Stage(name=kind, kind=kind, config={"seed": 1}, revision=1, parents=parents)


def writes(file: str, **facts: object) -> Callable[[StageRun, Path], StageOutput]:
    def compute(_run: StageRun, scratch: Path) -> StageOutput:
        path = scratch / file
        path.parent.mkdir(exist_ok=True)
        path.write_text("content")
        return StageOutput(scratch, details=facts)

    return compute


def test_reused_stage_is_recorded_like_a_computed_one(pipeline: Pipeline) -> None:
    data = run_stage(pipeline, make_stage("dataset"), writes("data_docs/index.html", name="pairs"))
    stage = make_stage("sft", dataset=data)
    line = {"step": 1, "phase": "train", "time": 1.0, "sft/loss": 0.5}
    client = MlflowClient(pipeline.tracker.uri)
    experiment = client.get_experiment_by_name("unit")
    assert experiment is not None
    for status in ("computed", "reused"):
        run_stage(pipeline, stage, writes("weights", curves=[line]))
        (found,) = client.search_runs(
            [experiment.experiment_id],
            f"tags.`alignflow.status` = '{status}' and tags.`alignflow.key` = '{stage.key}'",
        )
        assert found.data.params == {"seed": "1"}
        assert found.inputs is not None
        assert [item.dataset.name for item in found.inputs.dataset_inputs] == ["pairs"]
        assert [file.path for file in client.list_artifacts(found.info.run_id)] == ["manifest.json"]
    history = client.get_metric_history(found.info.run_id, "sft/loss")
    assert [(metric.step, metric.value) for metric in history] == [(1, 0.5)]


def test_stage_after_the_end_of_the_run_does_not_start(pipeline: Pipeline) -> None:
    pipeline.stop.set()
    with pytest.raises(RunStoppedError, match="stopped before dataset was done"):
        run_stage(pipeline, make_stage("dataset"), writes("rows"))


def test_forced_job_is_cleared_once_a_run(pipeline: Pipeline) -> None:
    pipeline.forced = frozenset({"sft"})
    assert [pipeline.must_clear(stage) for stage in ("sft", "sft", "dpo")] == [True, False, False]
