"""What the cluster says of a job's end, and what becomes of it."""

from typing import Any

import pytest

from alignflow.jobs.kubernetes.view import Listed, cause_of, listed, pods
from alignflow.jobs.spec import FailureKind


def job(*conditions: dict[str, str], **status: Any) -> Listed:
    found = {
        "metadata": {"name": "sft"},
        "spec": {"parallelism": 2},
        "status": {"conditions": [{"status": "True", **each} for each in conditions], **status},
    }
    return listed("job", found)


def pod(**status: Any) -> dict[str, Any]:
    return {"metadata": {"name": "sft-0-x"}, "status": {"phase": "Failed", **status}}


def terminated(reason: str, code: int) -> dict[str, Any]:
    state = {"terminated": {"exitCode": code, "reason": reason}}
    return {"containerStatuses": [{"name": "main", "state": state}]}


def disrupted(reason: str) -> dict[str, Any]:
    return {"conditions": [{"type": "DisruptionTarget", "status": "True", "reason": reason}]}


FAILED = job({"type": "Failed", "reason": "PodFailurePolicy"})


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (terminated("OOMKilled", 137), FailureKind.OUT_OF_MEMORY),
        ({**terminated("OOMKilled", 137), **disrupted("X")}, FailureKind.OUT_OF_MEMORY),
        (disrupted("PreemptionByScheduler"), FailureKind.PREEMPTED),
        (disrupted("EvictionByEvictionAPI"), FailureKind.PREEMPTED),
        (disrupted("DeletionByTaintManager"), FailureKind.NODE_LOST),
        (disrupted("DeletionByPodGC"), FailureKind.NODE_LOST),
        (disrupted("TerminationByKubelet"), FailureKind.NODE_LOST),
        (disrupted("SomethingNew"), FailureKind.PREEMPTED),
        (
            {
                "reason": "Evicted",
                "message": "Pod ephemeral local storage usage exceeds the total limit of 1Gi.",
                **disrupted("TerminationByKubelet"),
            },
            FailureKind.DISK_FULL,
        ),
    ],
)
def test_ends_of_a_pod_are_told_apart(status: dict[str, Any], kind: FailureKind) -> None:
    cause = cause_of(FAILED, pods("job", [pod(**status)]))
    assert cause is not None
    assert cause[0] is kind
    assert "sft-0-x" in cause[1]


def test_exit_status_alone_is_no_cause() -> None:
    assert cause_of(FAILED, pods("job", [pod(**terminated("Error", 1))])) is None


def test_deadline_is_the_time_limit() -> None:
    cause = cause_of(job({"type": "Failed", "reason": "DeadlineExceeded"}), [])
    assert cause == (FailureKind.TIME_LIMIT, "The job reached its time limit.")


def test_pod_that_is_gone_is_known_by_the_word_of_its_job() -> None:
    message = "Pod a/b has condition DisruptionTarget matching FailJob rule at index 1"
    failed = job({"type": "Failed", "reason": "PodFailurePolicy", "message": message})
    cause = cause_of(failed, [])
    assert cause is not None
    assert cause[0] is FailureKind.PREEMPTED


def test_pods_that_will_not_start_say_why() -> None:
    waiting = {"reason": "ImagePullBackOff", "message": "Back-off pulling image"}
    states = [{"name": "main", "state": {"waiting": waiting}}]
    creating = [{"name": "main", "state": {"waiting": {"reason": "ContainerCreating"}}}]
    found = pods(
        "job",
        [
            pod(phase="Pending", containerStatuses=states),
            pod(phase="Pending", containerStatuses=creating),
        ],
    )
    assert [each.waits_for for each in found] == ["ImagePullBackOff: Back-off pulling image", ""]


def test_job_runs_when_all_pods_that_are_left_do() -> None:
    assert job(active=2, ready=1).is_waiting
    assert not job(active=2, ready=2).is_waiting
    assert not job(active=1, ready=1, succeeded=1).is_waiting
    assert job({"type": "Suspended", "message": "in the queue"}).message == "in the queue"
    # Its pods still end: a next attempt must not begin beside them.
    assert job({"type": "FailureTarget"}, active=1, ready=1).is_live
    assert not job({"type": "Complete"}).is_live


def test_train_job_runs_when_its_job_is_ready() -> None:
    manifest: dict[str, Any] = {"metadata": {}, "spec": {}, "status": {}}
    assert listed("train_job", manifest).is_waiting
    manifest["status"] = {"jobsStatus": [{"name": "node", "ready": 1}]}
    assert not listed("train_job", manifest).is_waiting
    manifest["status"] = {"conditions": [{"type": "Failed", "status": "True", "reason": "X"}]}
    assert listed("train_job", manifest).failed == "X"
