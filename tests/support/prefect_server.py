"""A Prefect server with all its services, and what talks to it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogWorker
from prefect.settings import PREFECT_API_URL, temporary_settings
from server_process import ServerProcess, free_port

T = TypeVar("T")

_DRAIN_TIMEOUT_S = 60.0


def prefect_server(home: Path) -> ServerProcess:
    """Return a server on a free port, with what it keeps in a folder."""
    port = free_port()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    quiet = {
        "PREFECT_HOME": str(home),
        "PREFECT_UI_ENABLED": "0",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_LOGGING_SERVER_LEVEL": "WARNING",
        "DO_NOT_TRACK": "1",
    }
    command = ["uvicorn", "--factory", "prefect.server.api.server:create_app", "--host"]
    return ServerProcess(
        [sys.executable, "-m", *command, "127.0.0.1", "--port", str(port), "--lifespan", "on"],
        health_url=f"http://127.0.0.1:{port}/api/health",
        folder=home,
        environment={**kept, **quiet},
    )


@contextmanager
def running_server(home: Path) -> Iterator[str]:
    """Start a server on a free port and yield its API's URL."""
    with prefect_server(home).running() as server:
        yield server.health_url.removesuffix("/health")


@contextmanager
def server_of_this_process(home: Path) -> Iterator[str]:
    """Start a server that this process's flows and clients use, and yield its API's URL."""
    with running_server(home) as url, temporary_settings({PREFECT_API_URL: url}):
        try:
            yield url
        finally:
            # What sends a process's events and logs keeps to the server that it first met: the
            # next server would hear nothing, and whoever waits for the queue would wait for ever.
            EventsWorker.drain_all(timeout=_DRAIN_TIMEOUT_S, at_exit=False)
            APILogWorker.drain_all(timeout=_DRAIN_TIMEOUT_S, at_exit=False)


@contextmanager
def running_worker(url: str, pool: str, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start a process worker in a folder; it is killed with all that it started."""
    prefect = str(Path(sys.executable).with_name("prefect"))
    with (folder / "worker.log").open("ab") as log:
        worker = subprocess.Popen(
            [prefect, "worker", "start", "--pool", pool, "--type", "process"],
            env={**os.environ, "PREFECT_API_URL": url, "PREFECT_HOME": str(folder)},
            cwd=folder,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield worker
    finally:
        if worker.poll() is None:
            os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()


def wait_for(look: Callable[[], T | None], timeout_s: float) -> T:
    """Return what a look finds, as soon as it finds something."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(0.2)
    raise AssertionError(f"nothing was found in {timeout_s:.0f} s")
