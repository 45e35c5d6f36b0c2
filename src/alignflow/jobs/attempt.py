"""The processes of one attempt of a job on one machine: started, watched, stopped, accounted for.

What stands by them, the supervisor of a local job or the agent on a node of a cluster, says when
they have to end. It imports no torch: it is small, and there as fast as Python.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from alignflow.jobs.failures import failure_of_exit, make_failure
from alignflow.jobs.processes import (
    JOB_VARIABLE,
    SUPERVISOR_VARIABLE,
    Process,
    descendants,
    die_with_parent,
    kill_all,
    num_oom_kills,
    read_process,
)
from alignflow.jobs.run_folder import RunFolder
from alignflow.jobs.spec import FailureKind, JobFailure, JobSpec
from alignflow.jobs.worker import ATTEMPT_VARIABLE

_POLL_S = 0.1
# Longest time that processes may take to exit after the job's outcome is on disk.
_EXIT_S = 60.0

# What a rank reports that another one brought down.
_SECONDARY = (FailureKind.COMMUNICATION, FailureKind.CANCELLED)

# How torchrun names a rank that failed, in the summary it prints at its end.
_TORCHRUN_FAILURE = re.compile(
    r"rank\s+: (?P<rank>\d+) \(local_rank: \d+\)\s+exitcode\s+: (?P<code>-?\d+) \(pid: \d+\)"
)

CPU_ENVIRONMENT = {
    # Threads of GNU's OpenMP spin for some 15 ms before they sleep, which takes the cores from
    # whatever else runs: training steps of 1.6 s took 20 s beside one busy process on two cores.
    # Threads that sleep at once are woken thousands of times a step: 1.9 s. This many turns, a
    # quarter of a millisecond, gave 1.7 s, and 3.0 s beside the busy process.
    "GOMP_SPINCOUNT": "5000",
    # Memory that is freed is kept: handed back to the system after each operation, every page is
    # zeroed anew, which took a tenth of a step.
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**33),
}
"""What a job's computing on CPU cores starts with, where it isn't said otherwise."""


@dataclass
class Stop:
    """Why and until when the job has to end; filled in by a signal or the time limit."""

    kind: FailureKind | None = None
    deadline: float = 0.0
    signalled: set[int] = field(default_factory=set)
    """Pids that were told."""

    def request(self, kind: FailureKind, grace_s: float) -> None:
        """Give the job `grace_s` seconds; the first request counts."""
        if self.kind is None:
            self.kind, self.deadline = kind, time.monotonic() + grace_s


def uses_torchrun(spec: JobSpec) -> bool:
    """Whether torchrun starts the ranks.

    A single process needs none, whose own start costs seconds and the memory of one more torch.
    """
    return spec.nodes * spec.processes_per_node > 1


def job_command(
    spec: JobSpec, folder: RunFolder, rendezvous: Sequence[str] = ("--standalone",)
) -> list[str]:
    """Return what starts the job's processes on one machine.

    Args:
        spec: The job.
        folder: Its run folder.
        rendezvous: Options of torchrun that say how the nodes find each other.
    """
    target = ["-m", spec.module, str(folder.path)]
    if not uses_torchrun(spec):
        return [sys.executable, *target]
    torchrun = [sys.executable, "-m", "torch.distributed.run", *rendezvous]
    return [*torchrun, f"--nproc-per-node={spec.processes_per_node}", "--max-restarts=0", *target]


def environment_of_ranks(
    spec: JobSpec, folder: RunFolder, attempt: int, *, cores_per_process: int
) -> dict[str, str]:
    """Return the environment of the job's processes: this one's, and what the spec adds.

    Args:
        spec: The job.
        folder: Its run folder.
        attempt: From 1.
        cores_per_process: For computing on the CPU.
    """
    this = read_process(os.getpid())
    assert this is not None  # it is running this line
    environment = {
        **os.environ,
        "PYTHONUNBUFFERED": "1",  # lines reach the log as they are printed
        "PYTHONFAULTHANDLER": "1",
        JOB_VARIABLE: str(folder.path),
        ATTEMPT_VARIABLE: str(attempt),
        SUPERVISOR_VARIABLE: f"{this.pid}.{this.start_ticks}",
    }
    if spec.gpus_per_node == 0:
        environment["CUDA_VISIBLE_DEVICES"] = ""
        environment.setdefault("OMP_NUM_THREADS", str(max(1, cores_per_process)))
        environment = {**CPU_ENVIRONMENT, **environment}
        if "OMP_WAIT_POLICY" in environment and "GOMP_SPINCOUNT" not in os.environ:
            del environment["GOMP_SPINCOUNT"]  # which would win over what the user said
    if not uses_torchrun(spec):
        # What torchrun would set. At port 0 the rendezvous of one process takes any free one.
        environment |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    return environment | spec.env


@dataclass(frozen=True)
class End:
    """How the first of a job's processes on this machine ended."""

    code: int = 0
    """As `subprocess` gives it: negative is the signal that killed it."""
    has_kernel_killed: bool = False
    """Whether the kernel's out-of-memory killer struck meanwhile."""


def run_processes(
    folder: RunFolder,
    spec: JobSpec,
    command: Sequence[str],
    environment: dict[str, str],
    stop: Stop,
    *,
    look: Callable[[float], None],
    others: Callable[[], list[Process]] = list,
) -> End:
    """Run the job's processes on this machine to their end; none of them outlives the call.

    Args:
        folder: The run folder.
        spec: The job.
        command: From `job_command`.
        environment: From `environment_of_ranks`.
        stop: When it is requested, each rank is told, and killed at its deadline.
        look: Called again and again with the seconds since the start; may request to stop.
        others: Finds processes of the job that aren't descendants of this one.
    """
    oom_kills = num_oom_kills()
    say(f"{now()} starting {' '.join(command)}")
    # preexec_fn is safe here: this process has one thread.
    child = subprocess.Popen(command, env=environment, preexec_fn=die_with_parent)
    started = time.monotonic()
    outcome_seen: float | None = None
    while child.poll() is None:
        look(time.monotonic() - started)
        at = time.monotonic()
        if outcome_seen is None and folder.has_outcome():
            outcome_seen = at
        is_over = stop.kind is not None and at >= stop.deadline
        if is_over or (outcome_seen is not None and at - outcome_seen > _EXIT_S):
            _kill_descendants(others)
        elif stop.kind is not None:
            _tell_ranks(child.pid, spec, stop)
        time.sleep(_POLL_S)
    _kill_descendants(others)
    return End(child.returncode, oom_kills is not None and (num_oom_kills() or 0) > oom_kills)


def _tell_ranks(pid: int, spec: JobSpec, stop: Stop) -> None:
    """Send SIGTERM once to each rank, and to nothing below it: a rank needs its loaders to save.

    torchrun itself is told only while it has no workers: it would allow them 30 seconds, not ours.
    """
    first = read_process(pid)
    ranks = [first] if first is not None else []
    if uses_torchrun(spec):
        ranks = [process for process in descendants(pid) if process.parent == pid] or ranks
    for rank in ranks:
        if rank.pid not in stop.signalled:
            stop.signalled.add(rank.pid)
            rank.send(signal.SIGTERM)


def _kill_descendants(others: Callable[[], list[Process]]) -> None:
    for process in kill_all(lambda: [*descendants(os.getpid()), *others()]):
        say(f"process {process.pid} can't be killed")


def record_end(folder: RunFolder, spec: JobSpec, end: End, stop: Stop) -> None:
    """Leave a record of the end, unless a rank left one that is nearer to the cause."""
    if folder.read_result() is None:
        earlier = folder.read_failure()
        failure = (
            _failure_of_stop(spec, stop.kind, earlier, folder)
            if stop.kind is not None
            else _failure_of_end(folder, spec, end, earlier)
        )
        if failure is not None:
            folder.overrule_failure(failure)
    ended = folder.read_failure()
    how = f"failed ({ended.kind}): {ended.message}" if ended else "done"
    say(f"{now()} {how}, exit code {end.code}")


def _failure_of_stop(
    spec: JobSpec, kind: FailureKind, earlier: JobFailure | None, folder: RunFolder
) -> JobFailure | None:
    limit = f" of {spec.time_limit_s} s" if spec.time_limit_s is not None else ""
    message = {
        FailureKind.TIME_LIMIT: f"The job reached its time limit{limit}.",
        FailureKind.PREEMPTED: "The job was preempted, or stopped by somebody else.",
    }.get(kind, "The job was cancelled.")
    if earlier is not None:
        is_told = kind is not FailureKind.TIME_LIMIT and earlier.kind is kind
        # The end of one node stops the others as a preemption does.
        is_cause = kind is FailureKind.PREEMPTED and earlier.kind not in _SECONDARY
        if is_told or is_cause:
            return None  # the rank says at which step, or why
    return make_failure(kind, message, folder.log_tail(folder.rank_log(0)))


def _failure_of_end(
    folder: RunFolder, spec: JobSpec, end: End, earlier: JobFailure | None
) -> JobFailure | None:
    """Return what the exit statuses say, where that is nearer to the cause than a rank's account.

    A rank that a signal killed could not write; the others then speak of a lost connection.
    """
    rank, code = _first_failed_rank(folder, spec, end.code)
    is_killed = code < 0 and code != -signal.SIGTERM
    if earlier is not None and not (is_killed and earlier.kind in _SECONDARY):
        return None
    tail = folder.log_tail(folder.launcher_log)
    if rank is not None:
        tail = folder.log_tail(folder.rank_log(rank)) or tail
    who = f"Rank {rank} of {spec.module}" if rank is not None else f"The launcher of {spec.module}"
    return failure_of_exit(code, who=who, log_tail=tail, has_kernel_killed=end.has_kernel_killed)


def _first_failed_rank(folder: RunFolder, spec: JobSpec, code: int) -> tuple[int | None, int]:
    """Return the rank to blame and its exit status, negative for a signal."""
    if not uses_torchrun(spec):
        return 0, code
    text = folder.last_attempt(folder.launcher_log)
    ends = [(int(m["rank"]), int(m["code"])) for m in _TORCHRUN_FAILURE.finditer(text)]
    if not ends:
        return None, code
    # torchrun stops the others by SIGTERM, and prints the first that failed last.
    killed = [end for end in ends if end[1] < 0 and end[1] != -signal.SIGTERM]
    return killed[0] if killed else ends[-1]


def now() -> str:
    """Return the time as it stands in logs."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def say(line: str) -> None:
    """Write a line to the launcher's log, which is this process's output."""
    print(line, flush=True)
