"""What Slurm runs on the first node of a job: `python -m alignflow.jobs.slurm.batch RUN_FOLDER`.

It starts the agents of all nodes, passes on that the job has to stop, leaves a record where no
agent could, and puts a job that may go on back in line.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from alignflow.jobs.attempt import now, say
from alignflow.jobs.failures import failure_of_exit, make_failure
from alignflow.jobs.run_folder import ATTEMPT_MARK, RunFolder
from alignflow.jobs.slurm import commands
from alignflow.jobs.slurm.commands import ControllerAwayError
from alignflow.jobs.slurm.config import SlurmConfig
from alignflow.jobs.slurm.handle import SlurmHandle
from alignflow.jobs.slurm.launcher import CONFIG_NAME
from alignflow.jobs.spec import FailureKind, JobSpec

_POLL_S = 0.2
# Of the time before the limit, what is left for the end of the job.
_END_S = 15.0
# For processes of a node that was lost to see that they are superseded.
_FENCE_S = 5.0
_ASK_EVERY_S = 5.0

_GOES_ON = (FailureKind.TIME_LIMIT, FailureKind.PREEMPTED)


@dataclass
class _Signals:
    """Which have come."""

    is_near_limit: bool = False

    def install(self) -> None:
        """Note signals from now on; SIGTERM is for the agents, which answer for themselves."""

        def on_usr1(number: int, frame: FrameType | None) -> None:
            self.is_near_limit = True

        signal.signal(signal.SIGUSR1, on_usr1)
        signal.signal(signal.SIGTERM, lambda number, frame: None)


def main() -> None:
    """Run one attempt of the job whose run folder is the only argument."""
    signals = _Signals()
    signals.install()
    folder = RunFolder(Path(sys.argv[1]))
    spec = folder.read_spec()
    config = SlurmConfig.model_validate_json((folder.path / CONFIG_NAME).read_text())
    handle = _begin(folder, spec)
    if handle is None:
        return
    began = time.time()
    step = subprocess.Popen(step_command(folder, handle, config, _address(), _free_port()))
    code = _wait(step, folder, handle, config, signals)
    if folder.read_result() is not None:
        return
    if folder.read_failure() is None:
        who, tail = f"The step of {spec.module}", folder.log_tail(folder.launcher_log)
        folder.write_failure(failure_of_exit(code, who=who, log_tail=tail))
    if config.requeue and _may_go_on(folder, handle, since=began):
        _go_on(handle)
    raise SystemExit(1)


def _begin(folder: RunFolder, spec: JobSpec) -> SlurmHandle | None:
    """Return the handle of this attempt, on disk; None where another job has taken over."""
    job_id, restarts = _job_id(), int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    with folder.submission():  # the submitter writes its handle before it lets go
        handle = SlurmHandle.read(folder)
        if handle is None:  # it died before it could
            handle = SlurmHandle(job_id=job_id, first_attempt=1, attempt=1)
        if handle.job_id != job_id:
            say(f"{now()} Slurm job {job_id} gives way to {handle.job_id}")
            return None
        current = handle.replaced(attempt=handle.first_attempt + restarts)
        if current.attempt > handle.attempt:
            folder.begin_attempt(spec)
        current.write(folder)
    nodes = os.environ["SLURM_JOB_NODELIST"]
    say(f"{ATTEMPT_MARK}{current.attempt}, {now()}, Slurm job {job_id} on {nodes}")
    if restarts:
        time.sleep(_FENCE_S)
    return current


def step_command(
    folder: RunFolder, handle: SlurmHandle, config: SlurmConfig, address: str, port: int
) -> list[str]:
    """Return what starts an agent on each node."""
    python = config.node_python or config.python
    agent = [*config.node_command, python, "-m", "alignflow.jobs.slurm.node", str(folder.path)]
    srun = ["srun", "--ntasks-per-node=1", "--kill-on-bad-exit=1"]
    # Since 22.05 a step doesn't take over what the job was submitted with.
    if cpus := os.environ.get("SLURM_CPUS_PER_TASK"):
        srun.append(f"--cpus-per-task={cpus}")
    return [*srun, *agent, str(handle.attempt), address, str(port)]


def _wait(
    step: subprocess.Popen[bytes],
    folder: RunFolder,
    handle: SlurmHandle,
    config: SlurmConfig,
    signals: _Signals,
) -> int:
    """Return the exit status of the step, told to stop where that is asked for."""
    has_told = False
    while step.poll() is None:
        if signals.is_near_limit and folder.requested_stop() is None:
            grace_s = max(1.0, config.stop_before_limit_s - _END_S)
            folder.request_stop(grace_s, FailureKind.TIME_LIMIT)
        if not has_told and folder.requested_stop() is not None:
            has_told = _is_told(handle)
        time.sleep(_POLL_S)
    return step.returncode


def _is_told(handle: SlurmHandle) -> bool:
    try:
        commands.terminate_steps(handle.job_id)
    except ControllerAwayError as error:
        say(str(error))
        return False
    return True


def _may_go_on(folder: RunFolder, handle: SlurmHandle, *, since: float) -> bool:
    """Whether the job may be put back in line: nobody cancelled it, and it has come on."""
    failure = folder.read_failure()
    if failure is None or failure.kind not in _GOES_ON:
        return False
    listed = commands.look_up(handle.job_id)
    if listed is None or listed.state != "RUNNING":
        # What stopped the agents was no preemption, which leaves a job running meanwhile.
        folder.overrule_failure(make_failure(FailureKind.CANCELLED, "The job was cancelled."))
        return False
    return any(entry.stat().st_mtime > since for entry in folder.checkpoints.iterdir())


def _go_on(handle: SlurmHandle) -> None:
    say(f"{now()} going back in line")
    commands.requeue(handle.job_id)
    time.sleep(60)  # until Slurm ends this process; by itself it would end the job


def _job_id() -> int:
    return int(os.environ["SLURM_JOB_ID"])


def _address() -> str:
    """Return where the other nodes reach this one."""
    return commands.node_address(os.environ["SLURMD_NODENAME"])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    main()
