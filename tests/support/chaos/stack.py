"""The servers and the worker that faults strike, shared by the scenes."""

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from mlflow_server import mlflow_server
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect_server import prefect_server
from s3_server import S3Server, find_weed, s3_process
from server_process import ServerProcess, start_process

from alignflow.cli.deploy import deploy
from alignflow.jobs.processes import Process, all_processes
from alignflow.tasks.deployment.config import DEFAULT_FILE
from chaos.clock import Clock

POOL = "alignflow"
_MARK = "ALIGNFLOW_CHAOS_STACK"


@dataclass
class Worker:
    """A process worker; what it starts is told by a mark in the environment."""

    folder: Path
    environment: dict[str, str]
    process: subprocess.Popen[bytes] | None = None
    clock: Clock | None = None
    """What it and all that it starts take for the time of day; the machine's if None."""

    def start(self) -> None:
        """Start it, where it doesn't run."""
        if self.process is not None and self.process.poll() is None:
            return
        prefect = str(Path(sys.executable).with_name("prefect"))
        command = [prefect, "worker", "start", "--pool", POOL, "--type", "process"]
        log = self.folder / "worker.log"
        environment = {**self.environment, **(self.clock.environment if self.clock else {})}
        self.process = start_process(command, environment, self.folder, log)

    def send(self, number: signal.Signals) -> None:
        """Signal it, which has to run, and wait for its end."""
        assert self.process is not None
        assert self.process.poll() is None, "the worker was gone before the fault"
        self.process.send_signal(number)
        self.process.wait(90)

    def live_by(self, clock: Clock | None) -> None:
        """Start it anew with a clock of its own, or without."""
        self.send(signal.SIGTERM)
        self.clock = clock
        self.start()


@dataclass
class Stack:
    """Prefect, MLflow, an S3 server where one is installed, and a worker."""

    folder: Path
    prefect: ServerProcess
    mlflow: ServerProcess
    worker: Worker
    s3: S3Server | None = None
    s3_process: ServerProcess | None = None
    mark: str = field(default="")

    @property
    def mlflow_uri(self) -> str:
        """Where MLflow is."""
        return self.mlflow.health_url.removesuffix("/health")

    def marked_processes(self) -> list[Process]:
        """Return the worker, and what it, its flows and their jobs have started."""
        wanted = f"{_MARK}={self.mark}".encode()
        return [each for each in all_processes() if wanted in _environment(each.pid)]

    def heal(self) -> None:
        """Have everything run again, whatever a fault has left."""
        for server in (self.prefect, self.mlflow, self.s3_process):
            if server is not None and not server.answers():
                server.kill()
                server.start()
        self.worker.start()
        if self.worker.clock is not None:
            self.worker.live_by(None)


@contextmanager
def running_stack(folder: Path, recipe: Path) -> Iterator[Stack]:
    """Start all, with the recipe deployed, and have nothing of it outlive the block."""
    with ExitStack() as stack:
        prefect, mlflow = (folder / name for name in ("prefect", "mlflow"))
        for each in (prefect, mlflow):
            each.mkdir()
        # Both at once: each takes many seconds to make its database.
        servers = [prefect_server(prefect), mlflow_server(mlflow, {})]
        for server in servers:
            stack.callback(server.kill)
            server.launch()
        s3, s3_server = _s3(folder, stack)
        for server in servers:
            server.wait_until_ready()
        api = servers[0].health_url.removesuffix("/health")
        mark = uuid.uuid4().hex
        own = {
            "PREFECT_API_URL": api,
            "PREFECT_HOME": str(folder / "home"),
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "MLFLOW_TRACKING_URI": servers[1].health_url.removesuffix("/health"),
            **(s3.environment() if s3 else {}),
        }
        stack.enter_context(_environment_of(own))
        stack.enter_context(temporary_settings({PREFECT_API_URL: api}))
        worker = Worker(folder, {**os.environ, _MARK: mark})
        made = Stack(folder, servers[0], servers[1], worker, s3, s3_server, mark)
        stack.callback(_kill_all, made)
        deploy(recipe=[recipe], file=_without_schedules(folder))
        worker.start()
        yield made


def _without_schedules(folder: Path) -> Path:
    """Write what alignflow deploys, less what starts by the clock: a fault is put right on cue."""
    wanted = yaml.safe_load(DEFAULT_FILE.read_text(encoding="utf-8"))
    for deployment in wanted["deployments"]:
        deployment.pop("schedules", None)
    path = folder / "prefect.yaml"
    path.write_text(yaml.safe_dump(wanted), encoding="utf-8")
    return path


def _s3(folder: Path, stack: ExitStack) -> tuple[S3Server | None, ServerProcess | None]:
    weed = find_weed()
    if weed is None:
        return None, None
    (folder / "weed").mkdir()
    server, process = s3_process(folder / "weed", weed)
    stack.callback(process.kill)
    process.start()
    return server, process


@contextmanager
def _environment_of(values: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _kill_all(stack: Stack) -> None:
    while left := stack.marked_processes():
        for process in left:
            process.send(signal.SIGKILL)
    if stack.worker.process is not None:
        stack.worker.process.wait()


def _environment(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # gone
        return []
