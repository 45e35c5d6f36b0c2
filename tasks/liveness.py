"""Which process a flow run is in, and whether it still lives: told on disk, for whoever looks."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from alignflow.config import Config
from alignflow.jobs.processes import Machine, Process, read_process, this_machine
from alignflow.jobs.run_folder import write_atomically

Liveness = Literal["alive", "dead", "unknown"]


class _Mark(Config):
    """What a process says of itself."""

    host: str
    boot_id: str
    pid_namespace: str
    pid: int
    start_ticks: int


@contextmanager
def marked_process(workspace: Path, flow_run_id: str) -> Iterator[None]:
    """Say for the time of a block that this process works on a flow run."""
    path = _path(workspace, flow_run_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    process = read_process(os.getpid())
    assert process is not None
    mark = _Mark(**asdict(this_machine()), pid=process.pid, start_ticks=process.start_ticks)
    write_atomically(path, mark.model_dump_json())
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def liveness(workspace: Path, flow_run_id: str) -> Liveness:
    """Say whether the process that works on a flow run lives; only its own machine knows."""
    try:
        mark = _Mark.model_validate_json(_path(workspace, flow_run_id).read_bytes())
    except (OSError, ValidationError):
        return "unknown"
    if Machine(mark.host, mark.boot_id, mark.pid_namespace) != this_machine():
        # Started again since, or another one of the same name: its pids mean nothing here.
        return "unknown"
    process = Process(pid=mark.pid, parent=0, session=0, start_ticks=mark.start_ticks)
    return "alive" if process.is_alive() else "dead"


def forget_process(workspace: Path, flow_run_id: str) -> None:
    """Remove what the process of a flow run has said of itself; a killed one leaves it behind."""
    _path(workspace, flow_run_id).unlink(missing_ok=True)


def _path(workspace: Path, flow_run_id: str) -> Path:
    return workspace / "flow-runs" / f"{flow_run_id}.json"
