"""What the cluster's objects say about a job and its pods."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from alignflow.jobs.kubernetes.config import Template
from alignflow.jobs.kubernetes.manifests import CONTAINERS
from alignflow.jobs.spec import FailureKind

Manifest = dict[str, Any]
Cause = tuple[FailureKind, str]
"""A kind of failure, and one sentence about it."""

_DISTURBANCES: dict[str, Cause] = {
    "PreemptionByScheduler": (
        FailureKind.PREEMPTED,
        "Pod {pod} was preempted by one of higher priority.",
    ),
    "EvictionByEvictionAPI": (FailureKind.PREEMPTED, "Pod {pod} was evicted from its node."),
    "DeletionByTaintManager": (
        FailureKind.NODE_LOST,
        "Pod {pod} was removed from a node that is tainted or doesn't answer.",
    ),
    "DeletionByPodGC": (FailureKind.NODE_LOST, "The node of pod {pod} is gone."),
    "TerminationByKubelet": (
        FailureKind.NODE_LOST,
        "Pod {pod} was ended by its node, which is short of something or shuts down.",
    ),
}


@dataclass(frozen=True)
class Listed:
    """A job as the API server knows it."""

    is_waiting: bool
    """Whether its pods have yet to start, or to start again."""
    is_complete: bool
    failed: str | None
    """The reason of its failure, None where it hasn't failed."""
    message: str
    """What the cluster says about that, or about what it waits for."""

    @property
    def is_live(self) -> bool:
        """Whether it waits or runs, the time that its pods take to end included."""
        return not self.is_complete and self.failed is None


@dataclass(frozen=True)
class Pod:
    """A pod of a job."""

    name: str
    waits_for: str
    """Why it doesn't run yet."""
    exit_code: int | None
    cause: Cause | None
    """Why it failed, where the cluster knows more than its exit status."""
    created: str = field(compare=False)


def listed(template: Template, manifest: Manifest) -> Listed:
    """Return what the object of a job says."""
    status = manifest.get("status", {})
    conditions = {
        each["type"]: each for each in status.get("conditions", []) if each["status"] == "True"
    }
    failed, complete = conditions.get("Failed"), conditions.get("Complete")
    suspended = conditions.get("Suspended")
    is_ended = failed is not None or complete is not None
    is_deleted = "deletionTimestamp" in manifest["metadata"]
    is_running = _num_ready(template, status) >= _num_wanted(template, manifest)
    return Listed(
        is_waiting=not is_ended and not is_deleted and not is_running,
        is_complete=complete is not None,
        failed=failed.get("reason", "Failed") if failed is not None else None,
        message=(failed or suspended or {}).get("message", ""),
    )


def pods(template: Template, manifests: Iterable[Manifest]) -> list[Pod]:
    """Return what pods say, the newest last."""
    found = [_pod(template, manifest) for manifest in manifests]
    return sorted(found, key=lambda pod: pod.created)


def cause_of(job: Listed, its_pods: Iterable[Pod]) -> Cause | None:
    """Return why a job failed, as far as the cluster knows.

    A pod's account comes before that of the job, which only says that pods have failed; a limit of
    memory before a disturbance, since nothing is gained by starting again.
    """
    if job.failed == "DeadlineExceeded":
        return FailureKind.TIME_LIMIT, "The job reached its time limit."
    causes = [pod.cause for pod in its_pods if pod.cause is not None]
    final = [cause for cause in causes if not cause[0].is_retryable]
    if job.failed == "PodFailurePolicy" and "DisruptionTarget" in job.message and not causes:
        # An evicted pod is gone as soon as its end is counted.
        causes = [(FailureKind.PREEMPTED, f"The cluster disturbed a pod: {job.message}.")]
    return next(iter((final or causes)[::-1]), None)


def _num_ready(template: Template, status: Manifest) -> int:
    if template == "job":
        return int(status.get("ready") or 0)
    # Of a TrainJob, one of its Jobs: it counts as ready when all of its pods are.
    nodes = [each for each in status.get("jobsStatus", []) if each["name"] == "node"]
    return sum(int(each.get("ready") or 0) for each in nodes)


def _num_wanted(template: Template, manifest: Manifest) -> int:
    if template == "train_job":
        return 1
    # Those that are done aren't ready any more.
    return int(manifest["spec"]["parallelism"]) - int(manifest["status"].get("succeeded") or 0)


def _pod(template: Template, manifest: Manifest) -> Pod:
    metadata, status = manifest["metadata"], manifest.get("status", {})
    states = {each["name"]: each.get("state", {}) for each in status.get("containerStatuses", [])}
    state = states.get(CONTAINERS[template], {})
    ended = state.get("terminated", {})
    return Pod(
        name=metadata["name"],
        waits_for=_waits_for(status, state.get("waiting", {})),
        exit_code=ended.get("exitCode"),
        cause=_cause(metadata["name"], status, ended),
        created=metadata.get("creationTimestamp", ""),
    )


def _waits_for(status: Manifest, waiting: Manifest) -> str:
    """Return what keeps a pod from running, such as the scheduler's account of the nodes."""
    if waiting.get("reason") not in (None, "ContainerCreating", "PodInitializing"):
        return _joined(waiting["reason"], waiting.get("message"))
    for each in status.get("conditions", []):
        if each["type"] == "PodScheduled" and each["status"] == "False":
            return _joined(each.get("reason", "not scheduled"), each.get("message"))
    return ""


def _cause(name: str, status: Manifest, ended: Manifest) -> Cause | None:
    if status.get("phase") == "Succeeded":
        return None
    if ended.get("reason") == "OOMKilled":
        message = f"Pod {name} passed its limit of memory and was killed; raise cluster.kubernetes."
        return FailureKind.OUT_OF_MEMORY, f"{message}memory."
    said = str(status.get("message", "")).rstrip(".")
    if status.get("reason") == "Evicted" and "ephemeral" in said and "exceed" in said:
        return FailureKind.DISK_FULL, f"Pod {name} was evicted: {said}."
    for each in status.get("conditions", []):
        if each["type"] == "DisruptionTarget" and each["status"] == "True":
            kind, message = _DISTURBANCES.get(
                each.get("reason", ""), (FailureKind.PREEMPTED, "Pod {pod} was disturbed.")
            )
            detail = f" ({said})" if said else ""
            return kind, f"{message.format(pod=name).removesuffix('.')}{detail}."
    return None


def _joined(reason: str, message: str | None) -> str:
    return f"{reason}: {message}" if message else reason
