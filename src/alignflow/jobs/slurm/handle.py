"""Which Slurm job runs a run folder's attempt."""

from typing import Literal

from pydantic import PositiveInt

from alignflow.jobs.handle import JobHandle


class SlurmHandle(JobHandle):
    """Content of `handle.json`."""

    launcher: Literal["slurm"] = "slurm"
    job_id: PositiveInt
    first_attempt: PositiveInt
    """The attempt with which this Slurm job began; each time it is requeued makes another."""
