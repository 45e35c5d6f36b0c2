"""Waiting for a job, from any process and as often as need be."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from alignflow.errors import JobError
from alignflow.jobs.base import CANCEL_GRACE_S, Job
from alignflow.jobs.failures import make_failure
from alignflow.jobs.run_folder import RunFolder
from alignflow.jobs.spec import FailureKind, JobFailure, JobResult, JobStatus


def wait_for(
    job: Job,
    folder: RunFolder,
    *,
    on_metrics: Callable[[list[dict[str, Any]]], None] | None = None,
    on_status: Callable[[JobStatus, str], None] | None = None,
    poll_s: float = 1.0,
    stop: threading.Event | None = None,
    heartbeat_timeout_s: float = 300.0,
) -> JobResult:
    """Return the result of a job when it is there.

    Args:
        job: A job that runs, waits in line, or has ended.
        folder: Its run folder.
        on_metrics: Called with the rows of `metrics.jsonl` as they come, beginning with the first
            that any attempt wrote.
        on_status: Called with the status and the job's note, at first and when either changes.
        poll_s: Seconds between two looks.
        stop: Cancels the job when it is set.
        heartbeat_timeout_s: A running job that shows no life for this long counts as lost and is
            cancelled.

    Raises:
        JobError: The job failed, was cancelled or was lost.
    """
    stop = stop or threading.Event()
    reader = folder.metric_reader()
    seen: tuple[JobStatus, str] | None = None
    # By this process's own clock: the machine's may be set, and a suspended one slept like the job.
    heard_at, heard = time.monotonic(), folder.last_beat()
    while True:
        status, note = job.status(), job.note()
        if on_status and (status, note) != seen:
            on_status(status, note)
        seen = status, note
        # After the status, so that the last rows are read before the end is told.
        if (rows := reader.read_new()) and on_metrics:
            on_metrics(rows)
        if status is JobStatus.SUCCEEDED and (result := folder.read_result()) is not None:
            return result
        if failure := job.failure():
            raise _job_error(failure, folder)
        beat = folder.last_beat()
        if status is JobStatus.PENDING or beat != heard:
            heard_at, heard = time.monotonic(), beat
        if time.monotonic() - heard_at > heartbeat_timeout_s:
            raise _job_error(_give_up(job, folder, heartbeat_timeout_s), folder)
        if stop.is_set():
            job.cancel()
        stop.wait(poll_s)


@contextmanager
def cancel_on_exit(
    job: Job, *also: type[BaseException], grace_s: float = CANCEL_GRACE_S
) -> Iterator[None]:
    """Cancel the job when the block is left because this process was told to stop.

    That is by KeyboardInterrupt, SystemExit, or any other exception that isn't an `Exception`, and
    by those in `also`. An error in the block, or the death of this process, lets the job go on: the
    next run finds it.
    """
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) or isinstance(error, also):
            job.cancel(grace_s)
        raise


def _job_error(failure: JobFailure, folder: RunFolder) -> JobError:
    """Return the error of a job, with its log unless input or a request to stop explains it."""
    log = folder.rank_log(0)
    needs_log = not failure.kind.is_input and failure.kind is not FailureKind.CANCELLED
    return JobError(failure, log=log if needs_log and log.exists() else None)


def _give_up(job: Job, folder: RunFolder, silent_s: float) -> JobFailure:
    """Kill a job that shows no life and record it as lost."""
    job.cancel(grace_s=0)
    message = f"The job showed no life for {silent_s:.0f} s and was killed."
    failure = make_failure(FailureKind.NODE_LOST, message, folder.log_tail(folder.rank_log(0)))
    folder.overrule_failure(failure)
    return failure
