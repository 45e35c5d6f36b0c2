"""One pipeline on the stack, with a workspace and a model name of its own."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.client.schemas.objects import FlowRun, State
from prefect_server import wait_for

from alignflow.artifacts import ArtifactStore
from alignflow.flows.config import Recipe
from alignflow.jobs.finding import find_job
from alignflow.jobs.processes import Process, descendants, read_process
from alignflow.jobs.run_folder import RunFolder
from alignflow.jobs.spec import JobStatus
from alignflow.tasks.preflight import open_store
from alignflow.tasks.starting import start_pipeline
from chaos.observations import (
    End,
    flow_runs,
    read_end,
    read_jobs,
    unfinished_in_mlflow,
    unfinished_in_prefect,
)
from chaos.stack import Stack

_START_S = 240.0
_END_S = 420.0
_SETTLE_S = 30.0


@dataclass
class Scene:
    """A pipeline that a fault strikes."""

    name: str
    stack: Stack
    recipe: Recipe
    disk: Path | None = None
    """Folder of its workspace that lies on a small file system."""
    expect_in_log: tuple[Path, str] | None = None
    """A log, and what has to stand in it at the end."""
    num_started: int = 0

    @property
    def workspace(self) -> Path:
        """Folder of its jobs."""
        return Path(self.recipe.workspace)

    @property
    def store(self) -> ArtifactStore:
        """Its artifacts."""
        return open_store(self.recipe)

    def start(self) -> UUID:
        """Have the worker run the recipe, under a key of its own."""
        self.num_started += 1
        key = f"{self.stack.mark} {self.name} {self.num_started}"
        return UUID(start_pipeline(self.recipe, key=key, tags=[self.name]))

    @property
    def run(self) -> FlowRun:
        """The newest flow run."""
        return flow_runs(self.name)[-1]

    def state(self) -> State[object]:
        """Return the state of the newest flow run."""
        state = self.run.state
        assert state is not None
        return state

    def wait_for_state(self, *names: str, timeout_s: float = _END_S) -> None:
        """Return when the newest flow run is in one of the states.

        Raises:
            AssertionError: It came to another end, or to none in time.
        """
        deadline = time.monotonic() + timeout_s
        while (state := self.state()).name not in names:
            assert not state.is_final(), f"{state.name}: {state.message}"
            assert time.monotonic() < deadline, f"it is {state.name} and not {names}"
            time.sleep(0.5)

    def flow_process(self) -> Process:
        """Return the process of the newest flow run, which has to live."""
        mark = self.workspace / "flow-runs" / f"{self.run.id}.json"
        wait_for(mark.exists, _START_S)
        pid = json.loads(mark.read_bytes())["pid"]
        process = read_process(pid)
        assert process is not None, "the flow's process was gone before the fault"
        return process

    def job(self, stage: str) -> RunFolder:
        """Return the run folder of a stage's job, which has to run."""

        def look() -> RunFolder | None:
            for path in self.workspace.glob(f"jobs/{stage}-*/handle.json"):
                job = find_job(RunFolder(path.parent))
                if job is not None and job.status() is JobStatus.RUNNING:
                    return RunFolder(path.parent)
            state = self.state()
            assert not state.is_final(), f"{stage} did not run: {state.name}, {state.message}"
            return None

        return wait_for(look, _START_S)

    def step(self, stage: str) -> int:
        """Return the last training step that a stage's job has told of; 0 before the first."""
        return max((row["step"] for row in self.training_rows(stage)), default=0)

    def training_rows(self, stage: str) -> list[dict[str, Any]]:
        """Return what a stage's job has told of its training steps."""
        [path] = self.workspace.glob(f"jobs/{stage}-*")
        rows = RunFolder(path).metric_reader().read_new()
        return [row for row in rows if row.get("phase") == "train"]

    def end(self) -> End:
        """Return what registry and store hold."""
        return read_end(self.stack.mlflow_uri, self.store, self.recipe.registry.model_name)

    def left_behind(self) -> dict[str, list[str]]:
        """Return what should be gone and isn't, though it had some time to go.

        That is processes, their marks, and runs that Prefect or MLflow shows as running.
        """
        deadline = time.monotonic() + _SETTLE_S
        while (left := self._left()) and time.monotonic() < deadline:
            time.sleep(0.5)
        return left

    def _left(self) -> dict[str, list[str]]:
        worker = self.stack.worker.process
        running = [
            f"{process.pid} {process_name(process)}"
            for process in self.stack.marked_processes()
            if worker is None or process.pid != worker.pid
        ]
        experiment = self.recipe.registry.experiment
        left = {
            "processes": running,
            "marks": [path.name for path in self.workspace.glob("flow-runs/*.json")],
            "Prefect": unfinished_in_prefect(self.name),
            "MLflow": unfinished_in_mlflow(self.stack.mlflow_uri, experiment),
        }
        return {name: found for name, found in left.items() if found}

    def attempts(self) -> dict[str, int]:
        """Return how often the job of each stage was started, where that was more than once."""
        return {job.stage: job.attempts for job in read_jobs(self.workspace) if job.attempts > 1}

    def repeated_steps(self) -> dict[str, int]:
        """Return the training steps of each stage that were taken more than once."""
        jobs = read_jobs(self.workspace)
        return {job.stage: job.repeated_steps for job in jobs if job.repeated_steps}


def supervisor_and_ranks(folder: RunFolder) -> tuple[Process, list[Process]]:
    """Return the supervisor of a local job, and the processes that train."""
    pid = json.loads(folder.handle.read_text(encoding="utf-8"))["pid"]
    supervisor = read_process(pid)
    assert supervisor is not None, "the supervisor was gone before the fault"
    ranks = [each for each in descendants(pid) if _is_rank(each)]
    assert ranks, "no rank was there before the fault"
    return supervisor, ranks


def process_name(process: Process) -> str:
    """Return the command line of a process, as far as it fits a line."""
    try:
        text = Path(f"/proc/{process.pid}/cmdline").read_bytes()
    except OSError:
        return "gone"
    return text.replace(b"\0", b" ").decode(errors="replace")[:100]


def _is_rank(process: Process) -> bool:
    try:
        return any(
            each.startswith(b"RANK=")
            for each in Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
        )
    except OSError:
        return False
