"""Opening and closing a pipeline run, and cancelling its jobs from anywhere."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
from prefect import runtime
from prefect.client.orchestration import get_client
from prefect.futures import PrefectFuture, as_completed
from prefect.states import Cancelled

from alignflow.artifacts import ArtifactStore
from alignflow.errors import RunStoppedError, StoreError
from alignflow.jobs.base import Launcher
from alignflow.jobs.kubernetes.launcher import KubernetesLauncher
from alignflow.jobs.local import LocalLauncher
from alignflow.jobs.run_folder import RunFolder
from alignflow.jobs.slurm.launcher import SlurmLauncher
from alignflow.tasks.config import ClusterConfig, RunConfig
from alignflow.tasks.heartbeat import (
    HEARTBEAT_INTERVAL_S,
    send_heartbeat,
    sends_its_own_heartbeat,
)
from alignflow.tasks.interrupts import restore_interrupts
from alignflow.tasks.jobs import flow_run_index
from alignflow.tasks.liveness import marked_process
from alignflow.tasks.logs import run_logger
from alignflow.tasks.pipeline import Pipeline
from alignflow.tasks.preflight import open_store
from alignflow.tasks.row_checks import RowChecks
from alignflow.tasks.tracking import Tracker, tracking_uri
from alignflow.terminal import Display, current_display

_CANCELLATION_POLL_S = 5.0
_NOTE_USES_EVERY_S = 3600.0


@contextmanager
def open_pipeline(
    recipe: RunConfig,
    *,
    stages: Sequence[str],
    forced: frozenset[str],
    must_reuse: frozenset[str],
) -> Iterator[Pipeline]:
    """Open what the stages share; when the run ends in any way, end its jobs and MLflow runs.

    Args:
        recipe: The pipeline.
        stages: Names of its stages, in order.
        forced: Stages to compute anew.
        must_reuse: Stages that have to be in the store.

    Raises:
        StoreError: The artifact store can't be written.
        ConfigError: MLflow can't be reached.
    """
    restore_interrupts()
    workspace = Path(recipe.workspace).absolute()
    store = open_store(recipe)
    store.check_writable()
    # Before MLflow, whose start may take many seconds.
    with marked_process(workspace, str(runtime.flow_run.id)):
        display = current_display()
        display.plan(stages)
        pipeline = _make_pipeline(recipe, workspace, store, display, forced, must_reuse)
        with _running(pipeline):
            yield pipeline


def _make_pipeline(
    recipe: RunConfig,
    workspace: Path,
    store: ArtifactStore,
    display: Display,
    forced: frozenset[str],
    must_reuse: frozenset[str],
) -> Pipeline:
    tracker = Tracker(
        uri=tracking_uri(workspace),
        experiment=recipe.registry.experiment,
        artifact_root=workspace / "mlflow",
    )
    return Pipeline(
        recipe=recipe,
        run_id=str(runtime.flow_run.name),
        flow_run_id=str(runtime.flow_run.id),
        workspace=workspace,
        store=store,
        launcher=launcher_for(recipe.cluster),
        tracker=tracker,
        display=display,
        forced=forced,
        must_reuse=must_reuse,
        row_checks=RowChecks.of(recipe.row_checks),
    )


@contextmanager
def _running(pipeline: Pipeline) -> Iterator[None]:
    """Record the run, watch over it, and close it in whatever way it ends."""
    recipe = pipeline.recipe
    run = pipeline.tracker.start_pipeline(
        pipeline.run_id,
        {"alignflow.recipe": recipe.name, "prefect.flow_run_id": pipeline.flow_run_id},
        recipe.model_dump(mode="json"),
    )
    watcher = threading.Thread(
        target=_watch_over, args=(pipeline, sends_its_own_heartbeat()), daemon=True
    )
    watcher.start()
    status = "FAILED"
    try:
        yield
        status = "FINISHED"
    except (KeyboardInterrupt, RunStoppedError):
        status = "KILLED"
        raise
    finally:
        # Waiting threads cancel their jobs and leave; without this an error in one stage, or
        # Ctrl-C, would leave the jobs of the others behind.
        pipeline.stop.set()
        watcher.join()
        if pipeline.row_checks is not None:
            pipeline.row_checks.close()
        run.end(status)


def launcher_for(cluster: ClusterConfig) -> Launcher:
    """Return the launcher that a recipe asks for."""
    if cluster.kubernetes is not None:
        return KubernetesLauncher(cluster.kubernetes)
    return LocalLauncher() if cluster.slurm is None else SlurmLauncher(cluster.slurm)


def raise_first_failure(stages: Sequence[PrefectFuture[Any]]) -> None:
    """Wait for all stages; raise the error of one as soon as it fails.

    A stage whose parent failed ends too, without having run: its own state tells nothing.
    """
    for stage in as_completed(list(stages)):
        # Until it is waited for, a future asks the server for its state, which hears of it later.
        stage.wait()
        if stage.state.is_failed() or stage.state.is_crashed():
            stage.result()


def _watch_over(pipeline: Pipeline, has_own_heartbeat: bool) -> None:
    """Set `stop` when somebody cancels the flow run on Prefect's page; keep what the run needs.

    A run that no worker owns is told by nobody: its process has to look. What its first stages made
    must not count as unused before the last one has read it, nor the run as dead.
    """
    noted_at = told_at = time.monotonic()
    with get_client(sync_client=True) as client:
        while not pipeline.stop.wait(_CANCELLATION_POLL_S):
            if time.monotonic() - noted_at > _NOTE_USES_EVERY_S:
                noted_at = time.monotonic()
                _note_uses(pipeline)
            try:
                state = client.read_flow_run(UUID(pipeline.flow_run_id)).state
            except httpx.HTTPError:
                # The server is away; a cancellation can't come from it before it is back.
                continue
            if state is not None and (state.is_cancelling() or state.is_cancelled()):
                pipeline.stop.set()
            elif has_own_heartbeat and time.monotonic() - told_at > HEARTBEAT_INTERVAL_S:
                told_at = time.monotonic()
                send_heartbeat(pipeline.flow_run_id)


def _note_uses(pipeline: Pipeline) -> None:
    for record in list(pipeline.records.values()):
        try:
            pipeline.store.records.note_use(record.artifact.key)
        except StoreError as error:
            # Noted again in an hour; only days without a note would let the artifact go.
            run_logger().warning("%s", error)


def cancel_jobs(recipe: RunConfig, flow_run_id: str) -> None:
    """End every job of a flow run, from any process: the jobs are found on disk."""
    workspace = Path(recipe.workspace).absolute()
    launcher = launcher_for(recipe.cluster)
    index = flow_run_index(workspace, flow_run_id)
    for entry in sorted(index.iterdir()) if index.is_dir() else []:
        job = launcher.find(RunFolder(workspace / "jobs" / entry.name))
        if job is not None:
            job.cancel()


def confirm_cancellation(flow_run_id: UUID) -> None:
    """Tell Prefect that a cancelled run has ended; one that no worker owns has nobody else."""
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(flow_run_id, Cancelled())
