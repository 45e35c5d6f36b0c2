"""Running a stage as a job: submit or re-attach, follow its metrics, keep its curves."""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from alignflow.artifacts import Artifact
from alignflow.config import Config
from alignflow.errors import JobError
from alignflow.jobs.base import Job
from alignflow.jobs.run_folder import RunFolder
from alignflow.jobs.spec import JobFailure, JobStatus
from alignflow.jobs.wait import wait_for
from alignflow.tasks.events import emit
from alignflow.tasks.logs import run_logger
from alignflow.tasks.pipeline import Pipeline, Stage, StageOutput, run_stage
from alignflow.tasks.specs import job_spec
from alignflow.tasks.tracking import StageRun

_MAX_CURVE_POINTS = 500


def run_as_job(
    pipeline: Pipeline,
    stage: Stage,
    module: str,
    job: Callable[[], Config],
    *,
    num_processes: int = 1,
    on_cpu: bool = False,
) -> Artifact:
    """Return the artifact of a stage that a job computes.

    Args:
        pipeline: The run.
        stage: What determines the artifact.
        module: What the job runs.
        job: Makes its config, where there is something to compute: it fetches what is read.
        num_processes: Of the job.
        on_cpu: Leave the GPUs to others, whatever the recipe's device.

    Raises:
        JobError: The job failed.
    """

    def compute(run: StageRun, _scratch: Path) -> StageOutput:
        return run_job(
            pipeline,
            stage=stage.name,
            key=stage.key,
            module=module,
            config=job().model_dump(mode="json"),
            num_processes=num_processes,
            run=run,
            on_cpu=on_cpu,
        )

    return run_stage(pipeline, stage, compute)


def run_job(
    pipeline: Pipeline,
    *,
    stage: str,
    key: str,
    module: str,
    config: Mapping[str, Any],
    num_processes: int,
    run: StageRun,
    kind: str | None = None,
    on_cpu: bool = False,
) -> StageOutput:
    """Run a module as a job and return its output folder, final metrics and curves.

    Its metrics are named `kind/quantity`, `stage/quantity` without a kind. `on_cpu` leaves the GPUs
    to others, whatever the recipe's device.

    A job of the same key that still runs is joined, one that was lost goes on from its last
    checkpoint, one that ended well is not started again unless the stage is forced.

    Raises:
        JobError: The job failed; the kind says whether a retry may help.
    """
    folder = RunFolder(pipeline.job_folder(stage, key))
    if pipeline.must_clear(stage) and not _is_running(pipeline, folder):
        shutil.rmtree(folder.path, ignore_errors=True)
    spec = job_spec(
        pipeline.recipe.cluster,
        folder.path.name,
        module,
        config=dict(config),
        num_processes=num_processes,
        on_cpu=on_cpu,
    )
    _remember_flow_run(pipeline, folder)
    pipeline.raise_if_stopped(stage)
    job = pipeline.launcher.submit(spec, folder)
    run_logger().info("%s runs as job %s in %s", stage, job.id, folder.path)
    lines: list[Mapping[str, Any]] = []
    started: list[float] = []

    def tell(status: JobStatus, note: str) -> None:
        if status is JobStatus.RUNNING and not started:
            started.append(time.monotonic())
        if note:
            pipeline.display.note(stage, note)

    def follow(new: Sequence[Mapping[str, Any]]) -> None:
        lines.extend(new)
        run.follow_lines(new)
        for line in new:
            pipeline.display.progress(stage, dict(line))

    try:
        result = wait_for(
            job,
            folder,
            on_metrics=follow,
            on_status=tell,
            stop=pipeline.stop,
        )
    except JobError as error:
        if error.failure.kind.is_retryable:
            _tell_of_loss(pipeline, stage, job, error.failure)
        raise
    return StageOutput(
        folder=folder.output,
        metrics=result.metrics,
        details={
            **result.details,
            "num_processes": num_processes,
            "curves": thin_out(lines, kind or stage, _MAX_CURVE_POINTS),
            "tokens_per_s": mean_rate(lines),
        },
        seconds=time.monotonic() - started[0] if started else None,
    )


def _tell_of_loss(pipeline: Pipeline, stage: str, job: Job, failure: JobFailure) -> None:
    """Tell Prefect's automations of a job that was lost, whether it is started again or not."""
    model = pipeline.recipe.registry.model_name
    payload: dict[str, str | int] = {
        "model": model,
        "run": pipeline.run_id,
        "flow_run": pipeline.flow_run_id,
        "stage": stage,
        "job": job.id,
        "attempt": job.attempt,
        "kind": str(failure.kind),
        "message": failure.message,
    }
    key = f"{pipeline.flow_run_id} {stage} {job.id} {job.attempt}"
    emit("alignflow.job.lost", f"alignflow.model.{model}", payload, key=key)


def mean_rate(lines: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the mean of `tokens_per_s` over the lines that have one."""
    rates = [float(line["tokens_per_s"]) for line in lines if line.get("tokens_per_s")]
    return sum(rates) / len(rates) if rates else None


def thin_out(lines: Sequence[Mapping[str, Any]], stage: str, most: int) -> list[dict[str, Any]]:
    """Return the lines with a step and a value of the stage, training thinned to that many.

    Training lines are evenly spread, first and last kept; every validation is kept.
    """
    kept = [
        dict(line)
        for line in lines
        if "step" in line and any(name.startswith(f"{stage}/") for name in line)
    ]
    training = [index for index, line in enumerate(kept) if line.get("phase") == "train"]
    if len(training) <= most:
        return kept
    last = len(training) - 1
    wanted = {training[round(i * last / (most - 1))] for i in range(most)}
    dropped = set(training) - wanted
    return [line for index, line in enumerate(kept) if index not in dropped]


def _is_running(pipeline: Pipeline, folder: RunFolder) -> bool:
    job = pipeline.launcher.find(folder)
    return job is not None and job.status() in (JobStatus.PENDING, JobStatus.RUNNING)


def flow_run_index(workspace: Path, flow_run_id: str) -> Path:
    """Folder that names the jobs of a flow run, for a cancellation from another process."""
    return workspace / "jobs" / "by-flow-run" / flow_run_id


def _remember_flow_run(pipeline: Pipeline, folder: RunFolder) -> None:
    index = flow_run_index(pipeline.workspace, pipeline.flow_run_id)
    index.mkdir(parents=True, exist_ok=True)
    (index / folder.path.name).touch()
