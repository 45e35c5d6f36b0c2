"""Slots of this machine, so that pipelines queue for its processors and GPUs and don't collide.

A slot is a file in one folder for all processes of a user, `/tmp/alignflow-slots-UID` or
`$ALIGNFLOW_SLOTS_DIR`; holding it is holding its lock. There is one slot for each GPU that is
visible, and `$ALIGNFLOW_CPU_SLOTS` (1 unless set) for jobs on the CPU.
"""

import csv
import fcntl
import json
import os
import stat
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from alignflow.errors import ConfigError
from alignflow.jobs.processes import kill_all, processes_under, read_process

SLOTS_VARIABLE = "ALIGNFLOW_SLOTS_DIR"
"""Environment variable that names the folder of the slots."""

_POLL_S = 0.25


@dataclass(frozen=True)
class Slot:
    """A share of the machine that one job holds at a time."""

    kind: Literal["cpu", "gpu"]
    name: str
    """Name of the lock file."""
    device: str = ""
    """The GPU as `CUDA_VISIBLE_DEVICES` names it."""


@dataclass(frozen=True)
class Holder:
    """Who holds a slot, or held it last; written into its file for those who come after."""

    job: str
    pid: int
    start_ticks: int
    """With the pid this tells the job's supervisor, as in its handle."""


def num_cpu_slots(environ: Mapping[str, str] = os.environ) -> int:
    """Return how many jobs may share the processors of this machine.

    Raises:
        ConfigError: `ALIGNFLOW_CPU_SLOTS` is not a whole number from 1.
    """
    text = environ.get("ALIGNFLOW_CPU_SLOTS", "1")
    if not text.isdecimal() or int(text) == 0:
        raise ConfigError(f"ALIGNFLOW_CPU_SLOTS is {text!r}; give a whole number from 1.")
    return int(text)


def cpu_slots(environ: Mapping[str, str] = os.environ) -> list[Slot]:
    """Return the slots of the processors."""
    return [Slot("cpu", f"cpu-{index}") for index in range(num_cpu_slots(environ))]


def gpu_slots(environ: Mapping[str, str] = os.environ) -> list[Slot]:
    """Return a slot for each GPU that `CUDA_VISIBLE_DEVICES` leaves visible, or for all.

    The lock is named by the GPU's UUID where it is known, since containers may number the GPUs of
    one machine differently.
    """
    uuids = _gpu_uuids()
    listed = environ.get("CUDA_VISIBLE_DEVICES")
    devices = list(uuids) if listed is None else [item.strip() for item in listed.split(",")]
    return [Slot("gpu", f"gpu-{uuids.get(device, device)}", device) for device in devices if device]


@contextmanager
def held_slots(
    slots: Sequence[Slot],
    count: int,
    holder: Holder,
    *,
    on_wait: Callable[[str], None],
    is_stopped: Callable[[], bool],
) -> Iterator[list[Slot] | None]:
    """Hold `count` of the slots, waiting in line for them; yields None if stopped before.

    One job at a time collects slots, and keeps those it got while it waits for the rest: a job that
    needs many is not passed over by those that need few, and no two wait for each other.

    Args:
        slots: Slots of one kind.
        count: How many to hold, at most as many as there are.
        holder: Told to those who wait for these slots.
        on_wait: Called with what is waited for, as often as that is looked at.
        is_stopped: Asked while waiting; true ends it.
    """
    folder = _slots_folder()
    held: list[Slot] = []

    def wait_until(is_done: Callable[[], bool]) -> bool:
        while not is_done():
            if is_stopped():
                return False
            on_wait(_what_is_missing(folder, slots, holder))
            time.sleep(_POLL_S)
        return True

    def take_free_slots() -> bool:
        for slot in slots:
            is_wanted = len(held) < count and slot not in held
            if is_wanted and _try_take(folder / slot.name, holder, locks):
                held.append(slot)
        return len(held) == count

    with ExitStack() as locks:
        # Cleaners of /tmp leave a folder alone while it is locked.
        locks.enter_context(_locked(folder, os.O_RDONLY | os.O_DIRECTORY, fcntl.LOCK_SH))
        with ExitStack() as turn:
            queue = folder / f"{slots[0].kind}.queue"
            has_all = wait_until(lambda: _try_lock(queue, turn)) and wait_until(take_free_slots)
        yield held if has_all else None


def _try_take(path: Path, holder: Holder, locks: ExitStack) -> bool:
    with ExitStack() as attempt:
        if not _try_lock(path, attempt):
            return False
        # The lock went with the last holder, and what has outlived it is an orphan on the device.
        if (last := _read_holder(path)) and kill_all(
            lambda: processes_under(last.pid, last.start_ticks)
        ):
            return False
        path.write_text(json.dumps(asdict(holder)))
        locks.enter_context(attempt.pop_all())
        return True


def _try_lock(path: Path, locks: ExitStack) -> bool:
    """Lock a file until `locks` closes; False if another process has it."""
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        locks.enter_context(_locked(path, flags, fcntl.LOCK_EX | fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


@contextmanager
def _locked(path: Path, flags: int, lock: int) -> Iterator[None]:
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, lock)
        yield
    finally:
        os.close(descriptor)


def _what_is_missing(folder: Path, slots: Sequence[Slot], holder: Holder) -> str:
    written = {_read_holder(folder / slot.name) for slot in slots} - {None, holder}
    names = [f"{other.job} (pid {other.pid})" for other in written if other and _is_alive(other)]
    return f"a free {slots[0].kind} slot, held by {', '.join(sorted(names)) or 'another job'}"


def _is_alive(holder: Holder) -> bool:
    process = read_process(holder.pid)
    return process is not None and process.start_ticks == holder.start_ticks


def _read_holder(path: Path) -> Holder | None:
    try:
        return Holder(**json.loads(path.read_text()))
    except (FileNotFoundError, ValueError, TypeError):  # never held, or being written
        return None


def _slots_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the folder of the lock files, made for this user alone.

    Neither `$TMPDIR` nor `$XDG_RUNTIME_DIR`: those differ between two logins of one user, and the
    latter is removed at logout while a job goes on.
    """
    folder = Path(environ.get(SLOTS_VARIABLE) or f"/tmp/alignflow-slots-{os.getuid()}")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.lstat()
    except OSError as error:
        raise ConfigError(
            f"{folder}: can't be used for the slots of jobs ({error.strerror}); "
            f"name another folder in {SLOTS_VARIABLE}."
        ) from None
    if (
        not stat.S_ISDIR(status.st_mode)
        or status.st_uid != os.getuid()
        or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    ):
        raise ConfigError(
            f"{folder}: others may write here, so it can't hold the slots of jobs; "
            f"remove it, or name another folder in {SLOTS_VARIABLE}."
        )
    return folder


def _gpu_uuids() -> dict[str, str]:
    """Return index → UUID of the machine's GPUs, in PCI order; empty where there is no driver."""
    command = ["nvidia-smi", "--query-gpu=index,uuid", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return {}
    rows = csv.reader(found.stdout.splitlines(), skipinitialspace=True)
    return {row[0]: row[1] for row in rows if len(row) == 2} if found.returncode == 0 else {}
