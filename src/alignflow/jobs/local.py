"""Jobs on this machine: a supervisor process a job, in a session of its own."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from typing import Literal

from alignflow.errors import ConfigError, JobError
from alignflow.jobs.base import CANCEL_GRACE_S
from alignflow.jobs.failures import make_failure
from alignflow.jobs.handle import JobHandle
from alignflow.jobs.processes import (
    JOB_VARIABLE,
    kill_all,
    processes_of_job,
    read_process,
    this_machine,
)
from alignflow.jobs.run_folder import RunFolder
from alignflow.jobs.slots import SLOTS_VARIABLE, gpu_slots
from alignflow.jobs.spec import FailureKind, JobFailure, JobSpec, JobStatus
from alignflow.jobs.submission import submission

_START_TIMEOUT_S = 120.0
# Time between a killed worker and the end of its supervisor, which then records why.
_SUPERVISOR_EXIT_S = 3.0
# A job on another machine is seen by its heartbeat only.
_REMOTE_SILENCE_S = 60.0


class Handle(JobHandle):
    """Content of `handle.json`: which process on which machine is the supervisor."""

    launcher: Literal["local"] = "local"
    pid: int
    """Also the id of the supervisor's session."""
    start_ticks: int
    host: str
    boot_id: str
    pid_namespace: str
    is_pending: bool = True
    """Whether the job still waits for a slot."""
    note: str = ""
    """A few words about what the job does or waits for."""

    @classmethod
    def of_this_process(cls, attempt: int) -> "Handle":
        """Return the handle of the process that calls."""
        process = read_process(os.getpid())
        assert process is not None  # it is running this line
        return cls(
            attempt=attempt,
            pid=process.pid,
            start_ticks=process.start_ticks,
            **asdict(this_machine()),
        )

    def is_alive(self, folder: RunFolder) -> bool:
        """Whether the supervisor still runs."""
        here = this_machine()
        if (self.boot_id, self.pid_namespace) == (here.boot_id, here.pid_namespace):
            process = read_process(self.pid)
            return process is not None and process.start_ticks == self.start_ticks
        if self.host == here.host and self.boot_id != here.boot_id:
            return False  # this machine has been started anew
        beat = folder.last_beat()
        return beat is not None and time.time() - beat < _REMOTE_SILENCE_S


class LocalJob:
    """A job on this machine; everything it knows it reads from the run folder and /proc."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder

    @property
    def id(self) -> str:
        """Host and pid of the supervisor."""
        handle = self._handle()
        return f"local:{handle.host}:{handle.pid}"

    @property
    def attempt(self) -> int:
        """How often the job has been started, this time included."""
        return self._handle().attempt

    def status(self) -> JobStatus:
        """Return where the job is in its life now."""
        handle = self._handle()
        if handle.is_alive(self._folder):
            return JobStatus.PENDING if handle.is_pending else JobStatus.RUNNING
        if self._folder.read_result() is not None:
            return JobStatus.SUCCEEDED
        failure = self._folder.read_failure()
        is_cancelled = failure is not None and failure.kind is FailureKind.CANCELLED
        return JobStatus.CANCELLED if is_cancelled else JobStatus.FAILED

    def note(self) -> str:
        """Return what the job does or waits for; nothing after its end."""
        handle = self._handle()
        return handle.note if handle.is_alive(self._folder) else ""

    def failure(self) -> JobFailure | None:
        """Return why the job failed; None while it runs and after a success."""
        handle = self._handle()
        if handle.is_alive(self._folder) or self._folder.read_result() is not None:
            return None
        return self._folder.read_failure() or make_failure(
            FailureKind.NODE_LOST,
            f"Attempt {handle.attempt} of the job ended without a word: its processes were killed "
            "or the machine went down.",
            self._folder.log_tail(self._folder.rank_log(0))
            or self._folder.log_tail(self._folder.launcher_log),
        )

    def cancel(self, grace_s: float = CANCEL_GRACE_S) -> None:
        """Stop the job and return when none of its processes is left.

        Raises:
            ConfigError: The job runs on another machine.
            JobError: A process of the job can't be killed.
        """
        handle = self._handle()
        here = this_machine()
        if handle.is_alive(self._folder):
            if (handle.boot_id, handle.pid_namespace) != (here.boot_id, here.pid_namespace):
                raise ConfigError(f"The job runs on {handle.host}; cancel it there.")
            self._stop_supervisor(handle, grace_s)
        _kill_leftovers(self._folder)

    def _stop_supervisor(self, handle: Handle, grace_s: float) -> None:
        supervisor = read_process(handle.pid)
        if supervisor is None:
            return
        self._folder.request_stop(grace_s)
        supervisor.send(signal.SIGTERM)
        deadline = time.monotonic() + grace_s + _SUPERVISOR_EXIT_S
        while supervisor.is_alive() and time.monotonic() < deadline:
            time.sleep(0.05)
        if supervisor.is_alive():
            _kill_leftovers(self._folder)
            self._folder.overrule_failure(
                make_failure(FailureKind.CANCELLED, "The job was cancelled.")
            )

    def _handle(self) -> Handle:
        handle = Handle.read(self._folder)
        if handle is None:
            raise ConfigError(f"{self._folder.path}: no job was submitted with this run folder.")
        return handle


class LocalLauncher:
    """Starts jobs on this machine; they go on when the process that submitted them dies."""

    def submit(self, spec: JobSpec, folder: RunFolder) -> LocalJob:
        """Return the job of a run folder, started if it neither runs nor has succeeded.

        Raises:
            ConfigError: The spec asks for more than this machine has, or the folder can't be
                written or is another job's.
            JobError: The supervisor could not be started, or an earlier attempt can't be killed.
        """
        _check_spec(spec)
        with submission(spec, folder) as lock:
            return self._find_or_start(spec, folder, lock)

    def find(self, folder: RunFolder) -> LocalJob | None:
        """Return the job that was submitted with this folder, whatever became of it."""
        return LocalJob(folder) if folder.handle.exists() else None

    def _find_or_start(self, spec: JobSpec, folder: RunFolder, lock: int) -> LocalJob:
        job = self.find(folder)
        if job is not None and job.status() not in (JobStatus.FAILED, JobStatus.CANCELLED):
            return job
        _kill_leftovers(folder)
        folder.begin_attempt(spec)
        try:
            _start_supervisor(folder, lock)
        except BaseException:  # Ctrl-C among them: nobody would know of a job half started
            _kill_leftovers(folder)
            raise
        return LocalJob(folder)


def _check_spec(spec: JobSpec) -> None:
    if spec.nodes > 1:
        raise ConfigError(
            f"Job {spec.name} asks for {spec.nodes} nodes, and the local launcher has this machine "
            "only; set nodes to 1."
        )
    num_gpus = len(gpu_slots()) if spec.gpus_per_node else 0
    if spec.gpus_per_node > num_gpus:
        raise ConfigError(
            f"Job {spec.name} asks for {spec.gpus_per_node} GPUs, and this machine shows "
            f"{num_gpus}; ask for fewer, or run on the CPU."
        )


def _start_supervisor(folder: RunFolder, lock: int) -> None:
    """Start the supervisor of a new attempt; returns when its handle is on disk.

    The supervisor inherits the lock of the submission and lets go of it after that, so that not
    even the death of this process lets a second one in between. It works in the run folder, which
    lasts as long as the job: a worker of Prefect removes its flow's folder when it ends, and the
    MKL of a torch that is loaded in a folder that is gone ends the process.
    """
    with folder.launcher_log.open("ab") as log:
        command = [sys.executable, "-m", "alignflow.jobs.supervisor", str(folder.path)]
        started = subprocess.run(
            command,
            cwd=folder.path,
            env={**os.environ, **_absolute_paths(), JOB_VARIABLE: str(folder.path)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(lock,),
            start_new_session=True,
            timeout=_START_TIMEOUT_S,
            check=False,
        )
    if started.returncode != 0:
        tail = folder.log_tail(folder.launcher_log)
        message = f"The job could not be started; {folder.launcher_log} says why."
        raise JobError(make_failure(FailureKind.ERROR, message, tail))


def _absolute_paths() -> dict[str, str]:
    """Return the variables that name folders, as they are meant in this process's own folder."""
    named = {name: os.environ.get(name, "") for name in ("PYTHONPATH", SLOTS_VARIABLE)}
    return {
        name: os.pathsep.join(os.path.abspath(path) for path in value.split(os.pathsep))
        for name, value in named.items()
        if value
    }


def _kill_leftovers(folder: RunFolder) -> None:
    """Kill what is left of any attempt of the job."""
    if left := kill_all(lambda: processes_of_job(folder.path)):
        pids = ", ".join(str(process.pid) for process in left)
        message = f"Processes {pids} of the job can't be killed; look at what they hang on."
        raise JobError(make_failure(FailureKind.ERROR, message))
