"""Runs that Prefect shows as running though nobody works on them, and jobs that nobody waits for.

A run whose process was killed may stay `Running` for ever: a worker that is stopped tells nothing
of the runs it had. Such a run is marked as crashed, and where a deployment says how, started again
under its own id: what it had finished is in the store, and a job that still runs is joined.
"""

import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

from prefect import runtime
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.states import AwaitingRetry, Cancelled, Completed, Crashed

from alignflow.jobs.finding import find_job
from alignflow.jobs.run_folder import RunFolder
from alignflow.jobs.spec import JobStatus
from alignflow.tasks.heartbeat import HEARTBEAT
from alignflow.tasks.jobs import flow_run_index
from alignflow.tasks.liveness import forget_process, liveness
from alignflow.tasks.logs import run_logger
from alignflow.tasks.prefect_api import end_task_runs, open_task_runs, prefect_client
from alignflow.tasks.tracking import close_runs, tracking_uri

_FLOWS = (
    *("align", "compare", "align-on-new-preferences", "scheduled-retrain", "backfill"),
    *("promote", "rollback", "watch", "janitor"),
)
# The next run of their schedule does what this one did not come to.
_NOT_STARTED_AGAIN = ("watch", "janitor")
_LIVE = (JobStatus.PENDING, JobStatus.RUNNING)
_SETTLE_S = 60.0
"""A worker reports a crash a second time when it has cleared up, 26 s after the first on a busy
machine, over what was set since; a run that has begun by then loses its place in the queue."""
_RECENT = timedelta(days=7)
_ENDED = "The run that it was a part of has completed."
_DEAD = "No process works on this run any more."
_PAGE = 200


def sweep(*, silent_s: float, max_runs: int, settle_s: float = _SETTLE_S) -> list[str]:
    """Mark runs without a process as crashed, start again those that can be, end stray jobs.

    Args:
        silent_s: Seconds without a sign of life after which an unknown process counts as dead.
        max_runs: How often a run may have been started before it is given up.
        settle_s: Seconds between a crash and the next start.

    Returns:
        What was done, a sentence each.

    Raises:
        ConfigError: Prefect's settings name no server, or it doesn't answer.
    """
    with prefect_client() as client:
        janitor = _Janitor(client, silent_s, max_runs, settle_s)
        done = [
            *janitor.mark_dead(),
            *janitor.start_again(),
            *janitor.end_stray_jobs(),
            *janitor.end_stray_tasks(),
        ]
    for sentence in done:
        run_logger().info(sentence)
    if not done:
        run_logger().info("every run that Prefect shows as running lives")
    return done


class _Janitor:
    def __init__(
        self, client: SyncPrefectClient, silent_s: float, max_runs: int, settle_s: float
    ) -> None:
        self._client = client
        self._silent_s = silent_s
        self._max_runs = max_runs
        self._settle_s = settle_s
        self._flows = {
            flow.id: flow.name
            for flow in client.read_flows(flow_filter=FlowFilter(name=_any_name()))
        }

    def mark_dead(self) -> Iterator[str]:
        """Mark what is dead as crashed, or as cancelled where somebody wanted that."""
        for run in self._runs(StateType.RUNNING, StateType.PENDING, StateType.CANCELLING):
            if self._is_alive(run):
                continue
            assert run.state is not None
            _clear_up(run)
            if run.state.is_cancelling():
                end_jobs(run)
                end_task_runs(self._client, run.id, Cancelled())
                self._client.set_flow_run_state(run.id, Cancelled(), force=True)
                yield f"{run.name} was being cancelled by nobody: cancelled"
                continue
            end_task_runs(self._client, run.id, Crashed(message=_DEAD))
            message = _DEAD
            if run.deployment_id is None:
                message += " Run the recipe again: it goes on where this one was."
            self._client.set_flow_run_state(run.id, Crashed(message=message))
            yield f"{run.name} had no process any more: crashed"

    def start_again(self) -> Iterator[str]:
        """Start crashed runs of deployments again, where that was not tried too often."""
        crashed = [run for run in self._runs(StateType.CRASHED) if self._can_start(run)]
        if not crashed:
            return
        newest = max(run.state.timestamp for run in crashed if run.state)
        time.sleep(max(0.0, self._settle_s - (datetime.now(UTC) - newest).total_seconds()))
        for run in crashed:
            now = self._client.read_flow_run(run.id)
            if now.state is None or not now.state.is_crashed():
                continue
            # A worker that reports a crash tells nothing of the stages.
            _clear_up(run)
            end_task_runs(self._client, run.id, Crashed(message=_DEAD))
            if now.run_count >= self._max_runs:
                yield f"{run.name} crashed {now.run_count} times: it is not started again"
                continue
            self._client.set_flow_run_state(
                run.id, AwaitingRetry(scheduled_time=datetime.now(UTC)), force=True
            )
            joins = _live_jobs(run)
            yield f"{run.name} is started again" + (f" and joins {', '.join(joins)}" * bool(joins))

    def end_stray_jobs(self) -> Iterator[str]:
        """End jobs whose run was cancelled while no process was there to do so."""
        wanted = {
            job
            for run in self._runs(StateType.RUNNING, StateType.PENDING, StateType.SCHEDULED)
            for job in _live_jobs(run)
        }
        for run in self._runs(StateType.CANCELLED):
            for job in end_jobs(run, but=wanted):
                yield f"{run.name} was cancelled, and its job {job} still ran: cancelled"

    def end_stray_tasks(self) -> Iterator[str]:
        """End tasks that completed runs seem to be at.

        Prefect goes by the time that a task's process gives: after its clock was set back, the end
        of a task lies before its beginning, and is passed over.
        """
        state = FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.COMPLETED]))
        ours = FlowFilter(name=_any_name())
        for task in open_task_runs(self._client, FlowRunFilter(state=state), ours):
            self._client.set_task_run_state(task.id, Completed(message=_ENDED), force=True)
            yield f"{task.name} was at work in a run that has completed: completed"

    def _can_start(self, run: FlowRun) -> bool:
        return run.deployment_id is not None and self._flows[run.flow_id] not in _NOT_STARTED_AGAIN

    def _runs(self, *types: StateType) -> list[FlowRun]:
        """Return our runs in these states, those of long ago left out."""
        state = FlowRunFilterState(type=FlowRunFilterStateType(any_=list(types)))
        found: list[FlowRun] = []
        while True:
            page = self._client.read_flow_runs(
                flow_filter=FlowFilter(name=_any_name()),
                flow_run_filter=FlowRunFilter(state=state),
                limit=_PAGE,
                offset=len(found),
            )
            found += page
            if len(page) < _PAGE:
                break
        oldest = datetime.now(UTC) - _RECENT
        own = str(runtime.flow_run.id)
        is_final = StateType.CRASHED in types or StateType.CANCELLED in types
        return [
            run
            for run in found
            if run.state is not None
            and str(run.id) != own
            and (not is_final or run.state.timestamp > oldest)
        ]

    def _is_alive(self, run: FlowRun) -> bool:
        workspace = _workspace(run)
        if workspace is not None and (told := liveness(workspace, str(run.id))) != "unknown":
            return told == "alive"
        assert run.state is not None
        heard = max(filter(None, [run.state.timestamp, self._last_heartbeat(run.id)]))
        return (datetime.now(UTC) - heard).total_seconds() < self._silent_s

    def _last_heartbeat(self, flow_run_id: UUID) -> datetime | None:
        since = datetime.now(UTC) - timedelta(seconds=self._silent_s)
        wanted = {
            "event": {"name": [HEARTBEAT]},
            "resource": {"id": [f"prefect.flow-run.{flow_run_id}"]},
            "occurred": {"since": since.isoformat()},
            "order": "DESC",
        }
        answer = self._client.request(
            "POST", "/events/filter", json={"filter": wanted, "limit": 1}
        ).json()
        times = [datetime.fromisoformat(each["occurred"]) for each in answer["events"]]
        return max(times, default=None)


def end_jobs(run: FlowRun, *, but: set[str] | None = None) -> list[str]:
    """End the jobs of a run that still live, and return their names.

    Args:
        run: Its jobs are found on disk, in the workspace that its recipe names.
        but: Jobs that another run waits for.
    """
    workspace = _workspace(run)
    ended = [name for name in _live_jobs(run) if name not in (but or set())]
    for name in ended:
        assert workspace is not None
        job = find_job(RunFolder(workspace / "jobs" / name))
        if job is not None:
            job.cancel()
    return ended


def _live_jobs(run: FlowRun) -> list[str]:
    workspace = _workspace(run)
    if workspace is None:
        return []
    index = flow_run_index(workspace, str(run.id))
    names = sorted(entry.name for entry in index.iterdir()) if index.is_dir() else []
    jobs = {name: find_job(RunFolder(workspace / "jobs" / name)) for name in names}
    return [name for name, job in jobs.items() if job is not None and job.status() in _LIVE]


def _clear_up(run: FlowRun) -> None:
    """Close in MLflow what a dead run left open, and remove the name of its process."""
    workspace = _workspace(run)
    if workspace is None:
        return
    # Asked for a database that isn't there, MLflow would make one.
    if "MLFLOW_TRACKING_URI" in os.environ or (workspace / "mlflow.db").exists():
        close_runs(tracking_uri(workspace), str(run.id))
    forget_process(workspace, str(run.id))


def _workspace(run: FlowRun) -> Path | None:
    """Return the folder in which a run left its traces, where it says so in full."""
    recipe = run.parameters.get("recipe")
    folder = Path(recipe.get("workspace", "")) if isinstance(recipe, dict) else None
    return folder if folder is not None and folder.is_absolute() else None


def _any_name() -> FlowFilterName:
    return FlowFilterName(any_=list(_FLOWS))
