"""Jobs on a Slurm cluster: submitted, found, followed and cancelled from any of its machines.

Slurm forgets a job minutes after its end: how that came is read from the run folder, and of Slurm
is asked only whether the job still waits or runs.
"""

import shlex
import time
from dataclasses import dataclass, field

from alignflow.errors import ConfigError, JobError
from alignflow.jobs.base import CANCEL_GRACE_S
from alignflow.jobs.failures import kind_of_text, make_failure
from alignflow.jobs.run_folder import RunFolder, write_atomically
from alignflow.jobs.slurm import commands
from alignflow.jobs.slurm.commands import ControllerAwayError, Listed
from alignflow.jobs.slurm.config import SlurmConfig
from alignflow.jobs.slurm.handle import SlurmHandle
from alignflow.jobs.spec import FailureKind, JobFailure, JobSpec, JobStatus
from alignflow.jobs.submission import submission

CONFIG_NAME = "slurm.json"
SCRIPT_NAME = "slurm.sh"

# Between two questions to the controller, which serves a whole cluster.
_ASK_EVERY_S = 5.0
_ASK_AGAIN_S = 1.0
# After the time that a cancelled job was given, until Slurm is told to kill it, and to be gone.
_EXIT_S = 10.0
_KILL_S = 120.0
# A file that another node wrote may be seen so much later on a network file system.
_FILES_S = 35.0

_ENDS = {
    "TIMEOUT": (FailureKind.TIME_LIMIT, "The job reached its time limit."),
    "DEADLINE": (FailureKind.TIME_LIMIT, "The job reached its deadline."),
    "NODE_FAIL": (FailureKind.NODE_LOST, "A node of the job failed."),
    "BOOT_FAIL": (FailureKind.NODE_LOST, "A node of the job did not start."),
    "PREEMPTED": (FailureKind.PREEMPTED, "The job was preempted."),
    "OUT_OF_MEMORY": (FailureKind.OUT_OF_MEMORY, "The job passed the memory it had asked for."),
    "CANCELLED": (FailureKind.CANCELLED, "The job was cancelled."),
}


@dataclass
class _View:
    """What the controller said last, and when."""

    at: float = -1e9
    listed: Listed | None = None
    is_away: bool = False
    ended_at: float | None = None


@dataclass
class SlurmJob:
    """A job on a Slurm cluster."""

    _folder: RunFolder
    _view: _View = field(default_factory=_View)

    @property
    def id(self) -> str:
        """Slurm's id of the job."""
        return f"slurm:{self._handle().job_id}"

    @property
    def attempt(self) -> int:
        """How often the job has been started, this time included."""
        return self._handle().attempt

    def status(self) -> JobStatus:
        """Return where the job is in its life now."""
        view = self._ask()
        if view.listed is not None and view.listed.is_live:
            return JobStatus.PENDING if view.listed.is_waiting else JobStatus.RUNNING
        if self._folder.read_result() is not None:
            return JobStatus.SUCCEEDED
        failure = self._recorded_failure(view)
        if failure is not None:
            is_cancelled = failure.kind is FailureKind.CANCELLED
            return JobStatus.CANCELLED if is_cancelled else JobStatus.FAILED
        if view.is_away:
            has_started = self._folder.last_beat() is not None
            return JobStatus.RUNNING if has_started else JobStatus.PENDING
        if self._may_have_succeeded(view):
            return JobStatus.RUNNING
        self._folder.write_failure(self._unrecorded_end(view))
        return self.status()

    def note(self) -> str:
        """Return what the job waits for, or where it runs; nothing after its end."""
        status = self.status()
        view = self._view
        if view.is_away and status in (JobStatus.PENDING, JobStatus.RUNNING):
            return "Slurm's controller doesn't answer"
        if status is JobStatus.PENDING and view.listed is not None:
            return f"Slurm job {view.listed.job_id} waits: {view.listed.reason}"
        if status is JobStatus.RUNNING:
            handle = self._handle()
            return f"running as attempt {handle.attempt} in Slurm job {handle.job_id}"
        return ""

    def failure(self) -> JobFailure | None:
        """Return why the job failed; None while it runs and after a success."""
        is_over = self.status() in (JobStatus.FAILED, JobStatus.CANCELLED)
        return self._folder.read_failure() if is_over else None

    def cancel(self, grace_s: float = CANCEL_GRACE_S) -> None:
        """Stop the job and return when Slurm no longer has it.

        Raises:
            JobError: The controller doesn't answer, or the job can't be killed.
        """
        job_id = self._handle().job_id
        try:
            self._cancel(job_id, grace_s)
        except ControllerAwayError as error:
            raise _no_answer(error) from None
        self._folder.write_failure(make_failure(FailureKind.CANCELLED, "The job was cancelled."))
        self._view.at = -1e9

    def _cancel(self, job_id: int, grace_s: float) -> None:
        listed = commands.look_up(job_id)
        if listed is None or not listed.is_live:
            return
        self._folder.request_stop(grace_s)
        if listed.is_waiting:
            commands.cancel(job_id)
        else:
            commands.terminate_steps(job_id)
        if _is_gone(job_id, within_s=grace_s + _EXIT_S):
            return
        commands.cancel(job_id)
        if not _is_gone(job_id, within_s=_KILL_S):
            message = f"Slurm job {job_id} can't be killed; ask the cluster's operators."
            raise JobError(make_failure(FailureKind.ERROR, message))

    def _ask(self) -> _View:
        """Return what the controller says, asked at most every few seconds."""
        view = self._view
        pause = _ASK_AGAIN_S if self._folder.has_outcome() else _ASK_EVERY_S
        if time.monotonic() - view.at < pause:
            return view
        try:
            view.listed, view.is_away = commands.look_up(self._handle().job_id), False
        except ControllerAwayError:
            view.listed, view.is_away = None, True
        view.at = time.monotonic()
        return view

    def _recorded_failure(self, view: _View) -> JobFailure | None:
        """Return the failure that the job's processes recorded.

        Of a signal they know that it came, and Slurm why.
        """
        failure = self._folder.read_failure()
        state = view.listed.state if view.listed is not None else ""
        if failure is None or failure.kind is not FailureKind.PREEMPTED or state not in _ENDS:
            return failure
        kind, message = _ENDS[state]
        if kind is not failure.kind:
            failure = make_failure(kind, message, failure.log_tail)
            self._folder.overrule_failure(failure)
        return failure

    def _may_have_succeeded(self, view: _View) -> bool:
        """Whether the result may be on its way from another node's cache."""
        if view.listed is None or view.listed.state != "COMPLETED":
            return False
        if view.ended_at is None:
            view.ended_at = time.monotonic()
        return time.monotonic() - view.ended_at < _FILES_S

    def _unrecorded_end(self, view: _View) -> JobFailure:
        """Return what Slurm says of a job whose processes could not leave a record."""
        tail = self._folder.log_tail(self._folder.rank_log(0))
        tail = tail or self._folder.log_tail(self._folder.launcher_log)
        state = view.listed.state if view.listed else None
        if state is None:
            message = f"Attempt {self.attempt} of the job ended without a word, long ago."
            return make_failure(FailureKind.NODE_LOST, message, tail)
        kind, message = _ENDS.get(
            state, (kind_of_text(tail), f"The job ended as {state} and left no result.")
        )
        return make_failure(kind, message, tail)

    def _handle(self) -> SlurmHandle:
        handle = SlurmHandle.read(self._folder)
        if handle is None:
            raise ConfigError(f"{self._folder.path}: no job was submitted with this run folder.")
        return handle


@dataclass(frozen=True)
class SlurmLauncher:
    """Submits jobs to Slurm."""

    config: SlurmConfig

    def submit(self, spec: JobSpec, folder: RunFolder) -> SlurmJob:
        """Return the job of a run folder, submitted if it neither runs nor has succeeded.

        A job that was taken while its submitter died is found by its name.

        Raises:
            ConfigError: Slurm refuses the job, or the folder can't be written or is another job's.
            JobError: The controller doesn't answer.
        """
        try:
            with submission(spec, folder):
                return self._find_or_submit(spec, folder)
        except ControllerAwayError as error:
            raise _no_answer(error) from None

    def find(self, folder: RunFolder) -> SlurmJob | None:
        """Return the job that was submitted with this folder, whatever became of it."""
        return SlurmJob(folder) if folder.handle.exists() else None

    def _find_or_submit(self, spec: JobSpec, folder: RunFolder) -> SlurmJob:
        job = self.find(folder)
        if job is not None and job.status() not in (JobStatus.FAILED, JobStatus.CANCELLED):
            return job
        job_id = _submitted_before(spec, folder)
        if job_id is None:
            folder.begin_attempt(spec)
            write_atomically(folder.path / CONFIG_NAME, self.config.model_dump_json(indent=2))
            script = folder.path / SCRIPT_NAME
            write_atomically(script, batch_script(spec, folder, self.config))
            job_id = commands.submit(script)
        attempt = job.attempt + 1 if job is not None else 1
        SlurmHandle(job_id=job_id, first_attempt=attempt, attempt=attempt).write(folder)
        return SlurmJob(folder)


def batch_script(spec: JobSpec, folder: RunFolder, config: SlurmConfig) -> str:
    """Return what sbatch is given; a person may submit it too.

    It holds nothing of the environment: jobs get the variables that are named, by Slurm.
    """
    cpus = spec.processes_per_node * config.cpus_per_process
    options = {
        "job-name": spec.name,
        "comment": shlex.quote(str(folder.path)),
        "chdir": shlex.quote(str(folder.path)),
        "output": shlex.quote(str(folder.launcher_log).replace("%", "%%")),
        "open-mode": "append",
        "nodes": spec.nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": cpus,
        "gpus-per-node": spec.gpus_per_node or None,
        "mem": config.memory,
        "partition": config.partition,
        "account": config.account,
        "qos": config.qos,
        "constraint": config.constraint,
        "time": _minutes(spec.time_limit_s),
        "signal": f"B:USR1@{config.stop_before_limit_s}" if spec.time_limit_s else None,
        "export": ",".join(config.export) or "NIL",
    }
    lines = [f"#SBATCH --{name}={value}" for name, value in options.items() if value is not None]
    lines += ["#SBATCH --requeue" if config.requeue else "#SBATCH --no-requeue"]
    lines += [f"#SBATCH {option}" for option in config.options]
    command = [config.python, "-m", "alignflow.jobs.slurm.batch", str(folder.path)]
    return "\n".join(["#!/bin/sh", *lines, *config.setup, f"exec {shlex.join(command)}", ""])


def _minutes(time_limit_s: int | None) -> int | None:
    """Return a limit as Slurm counts, which kills a job up to a minute late but never early."""
    return None if time_limit_s is None else -(-time_limit_s // 60)


def _submitted_before(spec: JobSpec, folder: RunFolder) -> int | None:
    """Return the job that a submitter who died before writing its id has left."""
    known = SlurmHandle.read(folder)
    for listed in commands.live_jobs(spec.name):
        is_new = known is None or listed.job_id != known.job_id
        if listed.comment == str(folder.path) and is_new:
            return listed.job_id
    return None


def _is_gone(job_id: int, *, within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        listed = commands.look_up(job_id)
        if listed is None or not listed.is_live:
            return True
        time.sleep(_ASK_AGAIN_S)
    return False


def _no_answer(error: ControllerAwayError) -> JobError:
    message = f"Slurm's controller doesn't answer ({error})"
    return JobError(make_failure(FailureKind.COMMUNICATION, message))
