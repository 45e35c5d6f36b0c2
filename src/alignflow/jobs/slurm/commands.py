"""Slurm's commands, and what their answers mean."""

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from alignflow.errors import AlignflowError, ConfigError

# A command retries for minutes by itself where the controller is away.
_TIMEOUT_S = 20.0
_AWAY = re.compile(
    r"Unable to contact slurm controller|Connection refused|[Tt]imed out"
    r"|Zero Bytes were transmitted|Unexpected message received|Munge encode failed"
)

_WAITING = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD"}
_WAITING |= {"SPECIAL_EXIT"}
_AT_WORK = {"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "RESIZING", "SIGNALING", "STAGE_OUT"}


class ControllerAwayError(AlignflowError, RuntimeError):
    """Slurm's controller does not answer, which says nothing about its jobs."""


@dataclass(frozen=True)
class Listed:
    """A job as the controller knows it."""

    job_id: int
    state: str
    """Slurm's own word, such as `PENDING`."""
    reason: str
    """What it waits for."""
    comment: str

    @property
    def is_waiting(self) -> bool:
        """Whether it has yet to start, or to start again."""
        return self.state in _WAITING

    @property
    def is_live(self) -> bool:
        """Whether it waits or runs."""
        return self.is_waiting or self.state in _AT_WORK


def submit(script: Path) -> int:
    """Return the id of the job that a batch script became.

    Raises:
        ConfigError: Slurm refuses the script, or isn't installed.
        ControllerAwayError: There is no answer; the job may have been taken all the same.
    """
    done = _run("sbatch", "--parsable", str(script))
    if done.returncode != 0:
        why = done.stderr.strip().splitlines()[-1].removeprefix("sbatch: error: ")
        raise ConfigError(f"Slurm refuses the job: {why}; see {script} and cluster.slurm.")
    return int(done.stdout.strip().partition(";")[0])


def look_up(job_id: int) -> Listed | None:
    """Return a job, None once the controller has forgotten it.

    Raises:
        ControllerAwayError: There is no answer.
    """
    jobs = _list(f"--jobs={job_id}")
    return jobs[0] if jobs else None


def live_jobs(name: str) -> list[Listed]:
    """Return this user's jobs of a name that wait or run.

    Raises:
        ControllerAwayError: There is no answer.
    """
    return [job for job in _list("--me", f"--name={name}") if job.is_live]


def terminate_steps(job_id: int) -> None:
    """Send SIGTERM to what runs on the job's nodes, not to its batch script.

    Raises:
        ControllerAwayError: There is no answer.
    """
    _run("scancel", "--signal=TERM", "--quiet", str(job_id))


def cancel(job_id: int) -> None:
    """Cancel a job; one that has ended stays as it is.

    Raises:
        ControllerAwayError: There is no answer.
    """
    _run("scancel", "--quiet", str(job_id))


def requeue(job_id: int) -> bool:
    """Put a running job back in line; False where Slurm doesn't.

    Raises:
        ControllerAwayError: There is no answer.
    """
    return _run("scontrol", "requeue", str(job_id)).returncode == 0


def node_address(node: str) -> str:
    """Return the address under which the nodes know one of them.

    Raises:
        ControllerAwayError: There is no answer.
    """
    shown = _run("scontrol", "--oneliner", "show", "node", node).stdout
    found = re.search(r"\bNodeAddr=(\S+)", shown)
    return found[1] if found else node


def _list(*options: str) -> list[Listed]:
    done = _run("squeue", "--noheader", "--all", "--states=all", "--format=%i|%T|%r|%k", *options)
    if done.returncode != 0:
        return []  # of an id that it has forgotten, squeue makes an error
    return [_listed(line) for line in done.stdout.splitlines()]


def _listed(line: str) -> Listed:
    job_id, state, reason, comment = line.split("|", 3)
    return Listed(int(job_id), state, reason, comment)


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except FileNotFoundError:
        raise ConfigError(
            f"There is no {command[0]} here; submit from a machine of the cluster, or set "
            "cluster.launcher to local."
        ) from None
    except subprocess.TimeoutExpired:
        raise ControllerAwayError(f"{command[0]} got no answer in {_TIMEOUT_S:.0f} s.") from None
    if done.returncode != 0 and _AWAY.search(done.stderr):
        raise ControllerAwayError(f"{command[0]}: {done.stderr.strip().splitlines()[-1]}")
    return done
