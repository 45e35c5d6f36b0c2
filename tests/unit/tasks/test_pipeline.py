"""How a stage is computed or reused, on a real store and MLflow database."""

from pathlib import Path

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
