"""Processes that outlive the command that started them: pid files, start and stop."""

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from alignflow.jobs.processes import Process, all_processes, kill_all, read_process, this_machine

_POLL_S = 0.05
_LEFTOVERS_S = 5.0
_STOP_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


@dataclass(frozen=True)
class Record:
    """What a pid file says: a process told by pid, clock tick of its start, and boot."""

    pid: int
    start_ticks: int
    boot_id: str
    since: str
    """When it was started, as ISO 8601."""

    def process(self) -> Process | None:
        """Return the process while this very one runs: not another with its pid, nor a zombie."""
        found = read_process(self.pid) if self._is_of_this_boot() else None
        return found if found is not None and found.start_ticks == self.start_ticks else None

    def leftovers(self) -> list[Process]:
        """Return what of the process's session still runs, itself included."""
        other = read_process(self.pid)
        is_reused = other is not None and other.start_ticks != self.start_ticks
        if is_reused or not self._is_of_this_boot():
            return []
        return [
            process
            for process in all_processes()
            if process.session == self.pid and process.start_ticks >= self.start_ticks
        ]

    def _is_of_this_boot(self) -> bool:
        return self.boot_id == this_machine().boot_id


def read_record(path: Path) -> Record | None:
    """Return what a pid file says; None where there is none, or what is there is no record."""
    try:
        return Record(**json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def start(
    command: list[str],
    *,
    environment: dict[str, str],
    folder: Path,
    log: Path,
    pid_file: Path,
    user: str | None = None,
) -> subprocess.Popen[bytes]:
    """Start a process in a session of its own, so that no Ctrl-C of the terminal reaches it.

    Nothing can interrupt this process between the start and the pid file.

    Args:
        command: Program and arguments.
        environment: Whole.
        folder: Where it runs.
        log: What it prints is added to this file.
        pid_file: Says afterwards which process it is.
        user: Who it runs as; None for the user of this process.
    """
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(out, "ab") as file, _signals_blocked():
        process = subprocess.Popen(
            command,
            env=environment,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_take_signals,
            user=user,
            group=user,
            extra_groups=[] if user else None,
        )
        _write_record(process.pid, pid_file)
    return process


def ask_to_stop(record: Record, number: signal.Signals) -> None:
    """Ask a process to end, where it still runs."""
    if process := record.process():
        process.send(number)


def wait_until_gone(record: Record, pid_file: Path, *, grace_s: float) -> bool:
    """Wait for a process that was asked to end, then kill it with what is left of its session.

    Returns:
        Whether it ended by itself.
    """
    deadline = time.monotonic() + grace_s
    while (process := record.process()) is not None and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    if process is None:
        _end_leftovers(record)
    kill_all(record.leftovers)
    pid_file.unlink(missing_ok=True)
    return process is None


def _end_leftovers(record: Record) -> None:
    """Ask what a process left behind to end, and give it a moment."""
    for process in record.leftovers():
        process.send(signal.SIGTERM)
    deadline = time.monotonic() + _LEFTOVERS_S
    while record.leftovers() and time.monotonic() < deadline:
        time.sleep(_POLL_S)


def _write_record(pid: int, path: Path) -> None:
    process = read_process(pid)
    ticks = process.start_ticks if process else 0  # ended at once: no process has started so early
    record = Record(
        pid=pid,
        start_ticks=ticks,
        boot_id=this_machine().boot_id,
        since=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    draft = path.with_name(f".{path.name}.draft")
    draft.write_text(json.dumps(asdict(record)), encoding="utf-8")
    draft.rename(path)


@contextmanager
def _signals_blocked() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _take_signals() -> None:
    """Give a new process the signals back that are blocked here, or that a shell has it ignore.

    What a shell runs in the background ignores Ctrl-C, and Prefect's worker ends by it only.
    """
    for number in _STOP_SIGNALS:
        with contextlib.suppress(OSError):
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)
