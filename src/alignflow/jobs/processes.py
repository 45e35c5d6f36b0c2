"""What /proc says about processes: which still run, and which belong to a job.

A pid alone names nothing for long, since the kernel uses it again. A process is told by its pid
with the clock tick of its start, on the boot, and in the pid namespace, where both were read.
The processes of a job are told by a variable in their environment: torchrun puts each worker into a
session of its own, so neither session nor process group holds them together.
"""

import contextlib
import ctypes
import os
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

JOB_VARIABLE = "ALIGNFLOW_JOB_FOLDER"
"""Environment variable that every process of a job carries: the job's run folder."""
SUPERVISOR_VARIABLE = "ALIGNFLOW_JOB_SUPERVISOR"
"""Environment variable of what a supervisor started: `PID.START_TICKS` of the supervisor."""

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class Process:
    """A process as `/proc/PID/stat` describes it."""

    pid: int
    parent: int
    session: int
    start_ticks: int
    """Clock ticks between the boot and the start of the process."""

    def is_alive(self) -> bool:
        """Whether this very process still runs; a zombie doesn't."""
        now = read_process(self.pid)
        return now is not None and now.start_ticks == self.start_ticks

    def send(self, number: signal.Signals) -> None:
        """Signal the process if it still runs."""
        if self.is_alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


@dataclass(frozen=True)
class Machine:
    """Where a pid means something: a boot of a kernel, and a pid namespace on it."""

    host: str
    boot_id: str
    pid_namespace: str


def this_machine() -> Machine:
    """Return the machine, or container, of this process."""
    return Machine(
        host=socket.gethostname(),
        boot_id=Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        pid_namespace=str(Path("/proc/self/ns/pid").readlink()),
    )


def read_process(pid: int) -> Process | None:
    """Return the process, None if there is none or only a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name in parentheses may itself hold spaces and parentheses; fields are counted after it.
    fields = stat.rpartition(")")[2].split()
    if fields[0] in ("Z", "X"):
        return None
    return Process(
        pid=pid, parent=int(fields[1]), session=int(fields[3]), start_ticks=int(fields[19])
    )


def all_processes() -> list[Process]:
    """Return every process that this one can see."""
    pids = [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]
    return [process for pid in pids if (process := read_process(pid)) is not None]


def descendants(pid: int) -> list[Process]:
    """Return the children of a process, theirs, and so on."""
    children: dict[int, list[Process]] = {}
    for process in all_processes():
        children.setdefault(process.parent, []).append(process)
    found: list[Process] = []
    below = [pid]
    while below:
        below_next = [child for parent in below for child in children.get(parent, [])]
        found += below_next
        below = [child.pid for child in below_next]
    return found


def processes_of_job(run_folder: Path) -> list[Process]:
    """Return the processes of any attempt of a job, its supervisor included."""
    return _processes_marked(JOB_VARIABLE, str(run_folder))


def processes_under(supervisor_pid: int, supervisor_start_ticks: int) -> list[Process]:
    """Return what a supervisor started, even where it is gone itself."""
    return _processes_marked(SUPERVISOR_VARIABLE, f"{supervisor_pid}.{supervisor_start_ticks}")


def kill_all(find: Callable[[], list[Process]], *, within_s: float = 5.0) -> list[Process]:
    """Kill what `find` returns until it returns nothing; returns what would not die in time."""
    deadline = time.monotonic() + within_s
    while processes := find():
        if time.monotonic() > deadline:
            return processes
        for process in processes:
            process.send(signal.SIGKILL)
        time.sleep(0.02)
    return []


def die_with_parent() -> None:
    """Have the kernel kill this process when the one that started it dies."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent dies."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def num_oom_kills() -> int | None:
    """Return how often the out-of-memory killer struck in this control group, None if unknown."""
    for path, key in _memory_event_files():
        try:
            lines = path.read_text().splitlines()
        except OSError:
            continue
        for line in lines:
            name, _, value = line.partition(" ")
            if name == key:
                return int(value)
    return None


def _memory_event_files() -> list[tuple[Path, str]]:
    """Return where versions 2 and 1 of control groups count kills, own group before the root."""
    groups = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    files = []
    for _, controllers, name in groups:
        inside = name.lstrip("/")
        if controllers == "":
            root = Path("/sys/fs/cgroup")
            files += [(root / inside / "memory.events", "oom_kill")]
            files += [(root / "memory.events", "oom_kill")]
        elif "memory" in controllers.split(","):
            root = Path("/sys/fs/cgroup/memory")
            files += [(root / inside / "memory.oom_control", "oom_kill")]
            files += [(root / "memory.oom_control", "oom_kill")]
    return files


def _processes_marked(variable: str, value: str) -> list[Process]:
    """Return the processes with a variable in their environment, and those in their sessions."""
    wanted = f"{variable}={value}".encode()
    processes = [process for process in all_processes() if process.pid != os.getpid()]
    marked = [process for process in processes if wanted in _environment(process.pid)]
    # A process may have overwritten its environment with a title, but not left its session.
    sessions = {process.session for process in marked if process.pid == process.session}
    return [process for process in processes if process in marked or process.session in sessions]


def _environment(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # gone, or another user's
        return []


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, *map(ctypes.c_ulong, (value, 0, 0, 0))) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
