"""Data stages as tasks: benchmarks, and training sets that passed validation."""

import shutil
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from alignflow.artifacts import Artifact
from alignflow.sources import fetch_file
from alignflow.tasks.pipeline import Pipeline, Stage, StageOutput, run_stage
from alignflow.tasks.tracking import StageRun


@task(task_run_name="benchmark-{name}", cache_policy=NO_CACHE)
def fetch_benchmark(pipeline: Pipeline, name: str) -> Artifact:
    """Return a suite's data file as an artifact.

    Raises:
        DataError: The file isn't there or can't be reached.
    """
    suite = pipeline.recipe.evaluation.suites[name]
    file = fetch_file(suite.data, pipeline.cache)
    stage = Stage(f"benchmark-{name}", "benchmark", {"suite": suite.suite, "sha256": file.sha256})

    def compute(_run: StageRun, scratch: Path) -> StageOutput:
        shutil.copyfile(file.path, scratch / Path(file.path).name)
        return StageOutput(scratch, details={"source": file.uri, "bytes": file.size})

    return run_stage(pipeline, stage, compute)
