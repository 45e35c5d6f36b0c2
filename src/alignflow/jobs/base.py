"""The one interface behind which jobs run on this machine, or on a cluster.

A launcher is stateless: what it knows about a job it reads from the run folder and asks of the
system that runs it, so any process can find, follow and cancel a job that another one submitted.
"""

from typing import Protocol

from alignflow.jobs.run_folder import RunFolder
from alignflow.jobs.spec import JobFailure, JobSpec, JobStatus

CANCEL_GRACE_S = 10.0
"""Seconds between asking a job to stop and killing it, where the caller names none."""


class Job(Protocol):
    """A job that was submitted; always the newest attempt in its run folder."""

    @property
    def id(self) -> str:
        """Name of the attempt in the system that runs it."""
        ...

    @property
    def attempt(self) -> int:
        """How often the job has been started, this time included."""
        ...

    def status(self) -> JobStatus:
        """Return where the job is in its life now."""
        ...

    def note(self) -> str:
        """Return a few words about the status, such as what a pending job waits for.

        Empty after the end of the job.
        """
        ...

    def cancel(self, grace_s: float = CANCEL_GRACE_S) -> None:
        """Stop the job and return when none of its processes is left.

        The job may use `grace_s` seconds to save a checkpoint; what still runs then is killed. A
        job that has ended stays as it is.
        """
        ...

    def failure(self) -> JobFailure | None:
        """Return why the job failed; None while it runs and after a success."""
        ...


class Launcher(Protocol):
    """Starts jobs and finds those that were started."""

    def submit(self, spec: JobSpec, folder: RunFolder) -> Job:
        """Return the job of a run folder, started if it neither runs nor has succeeded.

        When this returns, `handle.json` is on disk: whoever comes later finds the job. A job that
        failed is started again, as the next attempt in the same folder. Of two callers at once one
        starts the job and both get it.

        Raises:
            ConfigError: The launcher can't run such a spec, or the folder is another job's.
            JobError: The job could not be started.
        """
        ...

    def find(self, folder: RunFolder) -> Job | None:
        """Return the job that was submitted with this folder, whatever became of it."""
        ...
