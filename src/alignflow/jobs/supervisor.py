"""The process that stands by a local job: `python -m alignflow.jobs.supervisor RUN_FOLDER`.

It detaches from whoever started it, writes `handle.json`, waits for the job's slots, starts the
job's processes, and leaves a record of the end even where they could not. None of the processes
outlives it. It imports no torch: it is small, and there as fast as Python.
"""

import os
import re
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from alignflow.jobs.base import CANCEL_GRACE_S
from alignflow.jobs.failures import failure_of, failure_of_exit, make_failure
from alignflow.jobs.local import Handle
from alignflow.jobs.processes import (
    JOB_VARIABLE,
    SUPERVISOR_VARIABLE,
    Process,
    adopt_orphans,
    descendants,
    die_with_parent,
    kill_all,
    num_oom_kills,
    processes_of_job,
    read_process,
)
from alignflow.jobs.run_folder import ATTEMPT_MARK, RunFolder
from alignflow.jobs.slots import Holder, Slot, cpu_slots, gpu_slots, held_slots, num_cpu_slots
from alignflow.jobs.spec import FailureKind, JobFailure, JobSpec
from alignflow.jobs.worker import ATTEMPT_VARIABLE

_POLL_S = 0.1
# Longest time that processes may take to exit after the job's outcome is on disk.
_EXIT_S = 60.0

# How torchrun names a rank that failed, in the summary it prints at its end.
_TORCHRUN_FAILURE = re.compile(
    r"rank\s+: (?P<rank>\d+) \(local_rank: \d+\)\s+exitcode\s+: (?P<code>-?\d+) \(pid: \d+\)"
)


@dataclass
class Stop:
    """Why and until when the job has to end; filled in by SIGTERM or the time limit."""

    kind: FailureKind | None = None
    deadline: float = 0.0
    signalled: set[int] = field(default_factory=set)
    """Pids that were told."""

    def request(self, kind: FailureKind, grace_s: float) -> None:
        """Give the job `grace_s` seconds; the first request counts."""
        if self.kind is None:
            self.kind, self.deadline = kind, time.monotonic() + grace_s


def main() -> None:
    """Supervise one attempt of the job whose run folder is the only argument."""
    folder = RunFolder(Path(sys.argv[1]))
    stop = Stop()

    def on_sigterm(number: int, frame: FrameType | None) -> None:
        stop.request(FailureKind.CANCELLED, folder.requested_grace_s(CANCEL_GRACE_S))

    signal.signal(signal.SIGTERM, on_sigterm)
    handle = _detach(folder)
    try:
        _supervise(folder, handle, stop)
    except Exception as error:
        traceback.print_exc()
        sys.stderr.flush()
        folder.write_failure(failure_of(error, folder.log_tail(folder.launcher_log)))


def _detach(folder: RunFolder) -> Handle:
    """Go on in a child of init, in a session of its own, with the handle on disk.

    The process that was started exits when that is done: its exit code tells the submitter, and
    leaves nobody a zombie to reap.
    """
    is_ready, ready = os.pipe()
    if os.fork() > 0:
        os.close(ready)
        os._exit(0 if os.read(is_ready, 1) else 1)
    os.setsid()
    before = Handle.read(folder)
    handle = Handle.of_this_process(attempt=before.attempt + 1 if before else 1)
    handle.write(folder)
    _say(f"{ATTEMPT_MARK}{handle.attempt}, {_now()}, pid {handle.pid} on {handle.host}")
    os.write(ready, b"1")
    _close_inherited_files()
    return handle


def _close_inherited_files() -> None:
    """Close all but stdin, stdout and stderr; the lock of the submission is among the rest."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2:
            with suppress(OSError):  # the descriptor that listed the folder is closed by now
                os.close(int(name))


def _supervise(folder: RunFolder, handle: Handle, stop: Stop) -> None:
    spec = folder.read_spec()
    adopt_orphans()
    slots, count = (gpu_slots(), spec.gpus_per_node) if spec.gpus_per_node else (cpu_slots(), 1)

    def on_wait(what: str) -> None:
        nonlocal handle
        folder.beat()
        if handle.note != (note := f"waiting for {what}"):
            handle = handle.replaced(note=note)
            handle.write(folder)
            _say(note)

    holder = Holder(spec.name, handle.pid, handle.start_ticks)
    with held_slots(
        slots, count, holder, on_wait=on_wait, is_stopped=lambda: stop.kind is not None
    ) as held:
        if held is None:
            _record_end(folder, spec, 0, stop, has_kernel_killed=False)
            return
        note = f"running as attempt {handle.attempt} on {', '.join(slot.name for slot in held)}"
        handle = handle.replaced(is_pending=False, note=note)
        handle.write(folder)
        oom_kills = num_oom_kills()
        code = _run(folder, spec, job_environment(spec, folder, handle, held), stop)
        has_kernel_killed = oom_kills is not None and (num_oom_kills() or 0) > oom_kills
        _record_end(folder, spec, code, stop, has_kernel_killed=has_kernel_killed)


def job_command(spec: JobSpec, folder: RunFolder) -> list[str]:
    """Return what starts the job's processes.

    A single process needs no torchrun, whose own start costs seconds and the memory of one more
    torch.
    """
    target = ["-m", spec.module, str(folder.path)]
    if spec.processes_per_node == 1:
        return [sys.executable, *target]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*torchrun, f"--nproc-per-node={spec.processes_per_node}", "--max-restarts=0", *target]


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


def job_environment(
    spec: JobSpec, folder: RunFolder, handle: Handle, held: Sequence[Slot]
) -> dict[str, str]:
    """Return the environment of the job's processes: this one's, and what the spec adds."""
    environment = {
        **os.environ,
        "PYTHONUNBUFFERED": "1",  # lines reach the log as they are printed
        "PYTHONFAULTHANDLER": "1",
        JOB_VARIABLE: str(folder.path),
        ATTEMPT_VARIABLE: str(handle.attempt),
        SUPERVISOR_VARIABLE: f"{handle.pid}.{handle.start_ticks}",
        "CUDA_VISIBLE_DEVICES": ",".join(slot.device for slot in held if slot.kind == "gpu"),
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # the order of nvidia-smi, by which slots are numbered
    }
    if spec.gpus_per_node == 0:
        sharers = spec.processes_per_node * num_cpu_slots()
        num_threads = max(1, len(os.sched_getaffinity(0)) // sharers)
        environment.setdefault("OMP_NUM_THREADS", str(num_threads))
        environment = {**CPU_ENVIRONMENT, **environment}
        if "OMP_WAIT_POLICY" in environment and "GOMP_SPINCOUNT" not in os.environ:
            del environment["GOMP_SPINCOUNT"]  # which would win over what the user said
    if spec.processes_per_node == 1:
        # What torchrun would set. At port 0 the rendezvous of one process takes any free one.
        environment |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    return environment | spec.env


def _run(folder: RunFolder, spec: JobSpec, environment: dict[str, str], stop: Stop) -> int:
    """Run the job's processes to their end and return the exit status of the first of them."""
    command = job_command(spec, folder)
    _say(f"{_now()} starting {' '.join(command)}")
    # preexec_fn is safe here: this process has one thread.
    child = subprocess.Popen(command, env=environment, preexec_fn=die_with_parent)
    started = time.monotonic()
    outcome_seen: float | None = None
    while child.poll() is None:
        now = time.monotonic()
        if spec.time_limit_s is not None and now - started > spec.time_limit_s:
            stop.request(FailureKind.TIME_LIMIT, CANCEL_GRACE_S)
        if outcome_seen is None and folder.has_outcome():
            outcome_seen = now
        if stop.kind is not None:
            _tell_ranks(child.pid, spec, stop)
        is_over = stop.kind is not None and now > stop.deadline
        if is_over or (outcome_seen is not None and now - outcome_seen > _EXIT_S):
            _kill_job(folder)
        time.sleep(_POLL_S)
    _kill_job(folder)
    return child.returncode


def _tell_ranks(pid: int, spec: JobSpec, stop: Stop) -> None:
    """Send SIGTERM once to each rank, and to nothing below it: a rank needs its loaders to save.

    torchrun itself is told only while it has no workers: it would allow them 30 seconds, not ours.
    """
    first = read_process(pid)
    ranks = [first] if first is not None else []
    if spec.processes_per_node > 1:
        ranks = [process for process in descendants(pid) if process.parent == pid] or ranks
    for rank in ranks:
        if rank.pid not in stop.signalled:
            stop.signalled.add(rank.pid)
            rank.send(signal.SIGTERM)


def _kill_job(folder: RunFolder) -> None:
    """Kill every process of the job but this one."""

    def find() -> list[Process]:
        return [*descendants(os.getpid()), *processes_of_job(folder.path)]

    for process in kill_all(find):
        _say(f"process {process.pid} can't be killed")


def _record_end(
    folder: RunFolder, spec: JobSpec, code: int, stop: Stop, *, has_kernel_killed: bool
) -> None:
    """Leave a record of the end, unless a rank left one that is nearer to the cause."""
    if folder.read_result() is None:
        earlier = folder.read_failure()
        failure = (
            _failure_of_stop(spec, stop.kind, earlier, folder)
            if stop.kind is not None
            else _failure_of_end(folder, spec, code, earlier, has_kernel_killed)
        )
        if failure is not None:
            folder.overrule_failure(failure)
    ended = folder.read_failure()
    how = f"failed ({ended.kind}): {ended.message}" if ended else "done"
    _say(f"{_now()} {how}, exit code {code}")


def _failure_of_stop(
    spec: JobSpec, kind: FailureKind, earlier: JobFailure | None, folder: RunFolder
) -> JobFailure | None:
    if kind is FailureKind.TIME_LIMIT:
        message = f"The job reached its time limit of {spec.time_limit_s} s."
        return make_failure(kind, message, folder.log_tail(folder.rank_log(0)))
    if earlier is not None and earlier.kind is kind:
        return None  # the rank says at which step
    return make_failure(kind, "The job was cancelled.", folder.log_tail(folder.rank_log(0)))


def _failure_of_end(
    folder: RunFolder,
    spec: JobSpec,
    code: int,
    earlier: JobFailure | None,
    has_kernel_killed: bool,
) -> JobFailure | None:
    """Return what the exit statuses say, where that is nearer to the cause than a rank's account.

    A rank that a signal killed could not write; the others then speak of a lost connection.
    """
    rank, code = _first_failed_rank(folder, spec, code)
    is_killed = code < 0 and code != -signal.SIGTERM
    secondary = (FailureKind.COMMUNICATION, FailureKind.CANCELLED)
    if earlier is not None and not (is_killed and earlier.kind in secondary):
        return None
    tail = folder.log_tail(folder.launcher_log)
    if rank is not None:
        tail = folder.log_tail(folder.rank_log(rank)) or tail
    who = f"Rank {rank} of {spec.module}" if rank is not None else f"The launcher of {spec.module}"
    return failure_of_exit(code, who=who, log_tail=tail, has_kernel_killed=has_kernel_killed)


def _first_failed_rank(folder: RunFolder, spec: JobSpec, code: int) -> tuple[int | None, int]:
    """Return the rank to blame and its exit status, negative for a signal."""
    if spec.processes_per_node == 1:
        return 0, code
    text = folder.last_attempt(folder.launcher_log)
    ends = [(int(m["rank"]), int(m["code"])) for m in _TORCHRUN_FAILURE.finditer(text)]
    if not ends:
        return None, code
    # torchrun stops the others by SIGTERM, and prints the first that failed last.
    killed = [end for end in ends if end[1] < 0 and end[1] != -signal.SIGTERM]
    return killed[0] if killed else ends[-1]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
