"""Servers of Prefect and MLflow on SQLite, for the time of a measurement."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from alignflow.jobs.processes import die_with_parent

START_TIMEOUT_S = 180.0

_QUIET = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_SERVER_LEVEL": "WARNING",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
}


@dataclass(frozen=True)
class Server:
    """A server that answers."""

    url: str
    """Its API's for Prefect."""
    pid: int
    """Also the id of its session."""


@contextmanager
def prefect_server(folder: Path) -> Iterator[Server]:
    """Start Prefect's, which keeps its database in the folder."""
    port = _free_port()
    command = [
        *(sys.executable, "-m", "uvicorn", "--factory", "prefect.server.api.server:create_app"),
        *("--lifespan", "on", "--port", str(port)),
    ]
    url = f"http://127.0.0.1:{port}/api"
    with _running(command, folder, {"PREFECT_HOME": str(folder / "prefect")}) as pid:
        _wait_for(f"{url}/health", folder)
        yield Server(url, pid)


@contextmanager
def mlflow_server(folder: Path) -> Iterator[Server]:
    """Start MLflow's, which keeps database and artifacts in the folder."""
    port = _free_port()
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(port)),
        *("--backend-store-uri", f"sqlite:///{folder}/mlflow.db"),
        *("--artifacts-destination", str(folder / "mlflow")),
    ]
    url = f"http://127.0.0.1:{port}"
    with _running(command, folder, {}) as pid:
        _wait_for(f"{url}/health", folder)
        yield Server(url, pid)


@contextmanager
def _running(command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> Iterator[int]:
    with (folder / "servers.txt").open("ab") as log:
        process = subprocess.Popen(
            command,
            env={**os.environ, **_QUIET, **environment},
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
    try:
        yield process.pid
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_for(url: str, folder: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            with urlopen(url, timeout=1):
                return
        except (URLError, OSError):
            time.sleep(0.1)
    raise SystemExit(f"{url} doesn't answer:\n{(folder / 'servers.txt').read_text()}")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
