"""Jobs that count (`workers/counting_job.py`), and waiting for what becomes of them."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignflow.errors import JobError
from alignflow.jobs.base import Job
from alignflow.jobs.run_folder import RunFolder
from alignflow.jobs.spec import JobFailure, JobResult, JobSpec
from alignflow.jobs.wait import wait_for

WORKERS = Path(__file__).parents[1] / "integration" / "workers"
FOR_EVER = {"num_steps": 100_000}


def counting(config: dict[str, Any], **changes: Any) -> JobSpec:
    """Return the spec of a job that counts."""
    return JobSpec(
        name="counting-1234",
        module="counting_job",
        config=config,
        env={"PYTHONPATH": str(WORKERS)},
    ).replaced(**changes)


def finish(job: Job, folder: RunFolder) -> JobResult:
    """Return the result of a job when it is there."""
    return wait_for(job, folder, poll_s=0.05)


def failure_of(job: Job, folder: RunFolder) -> JobFailure:
    """Return why a job fails when it has."""
    with pytest.raises(JobError) as caught:
        finish(job, folder)
    return caught.value.failure


def has_seen_steps(folder: RunFolder, num_ranks: int = 1) -> bool:
    """Whether every rank is at work."""
    return len(list(folder.checkpoints.iterdir())) == num_ranks


def until(is_so: Callable[[], bool], *, within_s: float = 60.0) -> None:
    """Wait for something to be so."""
    deadline = time.monotonic() + within_s
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)
