"""Which attempt of its job a pod takes part in, when pods come, go and are replaced one by one.

The pod of index 0 leads: when it starts anew, the next attempt begins. The others join the attempt
that it has begun, each once. A pod that finds that its predecessor took part in the attempt knows
that this one has lost a node: it asks all others to end, so that they are replaced too.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from alignflow.jobs.attempt import say
from alignflow.jobs.kubernetes.handle import KubernetesHandle
from alignflow.jobs.run_folder import RunFolder
from alignflow.jobs.spec import FailureKind, JobFailure, JobSpec

_LOOK_EVERY_S = 0.5
# For the other pods to leave the attempt that has lost one.
_LEAVE_S = 5.0
# For processes of a node that was lost to see that they are superseded.
_FENCE_S = 5.0


@dataclass(frozen=True)
class Member:
    """A pod of a job."""

    job: str
    """Name of the object that made it."""
    first_attempt: int
    """The attempt with which that object began."""
    index: int
    name: str
    may_restart: bool
    """Whether it may begin another attempt of the job."""


def join(
    folder: RunFolder,
    spec: JobSpec,
    handle: KubernetesHandle,
    pod: Member,
    *,
    is_told: Callable[[], bool],
) -> int | None:
    """Return the attempt that a pod takes part in, None where there is nothing for it to do.

    Args:
        folder: The run folder.
        spec: The job.
        handle: What the launcher writes; the pod does where the launcher died before it could.
        pod: This one.
        is_told: Whether it was told to end.
    """
    while not is_told():
        with folder.submission():  # the submitter writes its handle before it lets go
            known = KubernetesHandle.read(folder)
            if known is None or known.attempt < pod.first_attempt:
                known = handle
                known.write(folder)
            if known.name != pod.job:
                say(f"{pod.job} gives way to {known.name}")
                return None
            if pod.index == 0:
                return _lead(folder, spec, known, pod)
            if folder.read_result() is not None:
                return None
            if _may_follow(folder, known, pod):
                return known.attempt
        time.sleep(_LOOK_EVERY_S)
    return None


def goes_on(folder: RunFolder, spec: JobSpec, failure: JobFailure) -> bool:
    """Whether an attempt that ended in this way may be followed by another one of the same job."""
    stop = folder.requested_stop()
    if stop is not None:
        return stop.kind is FailureKind.NODE_LOST
    if failure.kind is FailureKind.PREEMPTED:
        return True
    # What ranks see of the end of another pod; if it was the job's fault, that pod fails the job.
    secondary = (FailureKind.COMMUNICATION, FailureKind.CANCELLED)
    return spec.nodes > 1 and failure.kind in secondary


def _lead(folder: RunFolder, spec: JobSpec, handle: KubernetesHandle, pod: Member) -> int | None:
    """Begin the next attempt where this one has begun before, and may be followed by another."""
    if not _has_joined(folder, handle.attempt, pod.index):
        _note(folder, handle.attempt, pod)
        return handle.attempt
    if not pod.may_restart or folder.read_result() is not None or _is_final(folder, spec):
        return None
    following = handle.replaced(attempt=handle.attempt + 1)
    folder.begin_attempt(spec)
    following.write(folder)
    _note(folder, following.attempt, pod)
    time.sleep(_FENCE_S)
    return following.attempt


def _is_final(folder: RunFolder, spec: JobSpec) -> bool:
    """Whether the attempt was cancelled, or failed in a way that would come again."""
    stop, failure = folder.requested_stop(), folder.read_failure()
    if stop is not None and stop.kind is not FailureKind.NODE_LOST:
        return True
    return failure is not None and not goes_on(folder, spec, failure)


def _may_follow(folder: RunFolder, handle: KubernetesHandle, pod: Member) -> bool:
    if not _has_joined(folder, handle.attempt, 0) or folder.read_failure() is not None:
        return False  # it has yet to begin, or is over
    if not _has_joined(folder, handle.attempt, pod.index):
        _note(folder, handle.attempt, pod)
        return True
    if folder.requested_stop() is None:
        say(f"attempt {handle.attempt} has lost pod {pod.index}; the others are to start anew")
        folder.request_stop(_LEAVE_S, FailureKind.NODE_LOST)
    return False


def _has_joined(folder: RunFolder, attempt: int, index: int) -> bool:
    return (folder.path / "pods" / f"{attempt}-{index}").exists()


def _note(folder: RunFolder, attempt: int, pod: Member) -> None:
    notes = folder.path / "pods"
    notes.mkdir(exist_ok=True)
    (notes / f"{attempt}-{pod.index}").write_text(f"{pod.name}\n")
