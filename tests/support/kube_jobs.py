"""The controllers of the stub cluster: Indexed Jobs with their failure policy, and TrainJobs.

They decide as Kubernetes documents it, but for the pause before a pod is replaced, which is none.
"""

import copy
import time
from typing import Any

from kube_objects import (
    Object,
    Store,
    delete,
    has_condition,
    is_deleted,
    now,
    set_condition,
    suffix,
)

_COUNTED = "stub/counted"
_INDEX = "batch.kubernetes.io/job-completion-index"
_NODE_JOB = "node"


class JobController:
    """Makes the pods of Jobs, counts how they end, and ends the Jobs."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._started: dict[str, float] = {}

    def sync(self, job: Object) -> None:
        """Take a Job a step further."""
        pods = self._store.owned("pods", job)
        self._count(job, pods)
        self._forget_deleted(pods)
        active = [pod for pod in pods if pod["status"].get("phase") in (None, "Pending", "Running")]
        if is_deleted(job):
            self._delete_all(job, active)
            return
        if _is_over(job):
            return
        self._check_deadline(job)
        if has_condition(job, "FailureTarget"):
            for pod in active:
                delete(pod)
            if not active:
                because = _condition(job, "FailureTarget")
                set_condition(job, "Failed", because["reason"], because["message"])
        elif len(_done(job)) == job["spec"]["completions"]:
            set_condition(job, "Complete", "CompletionsReached")
        elif not job["spec"].get("suspend"):
            self._make_pods(job, active)
        job["status"] |= {
            "active": len(active),
            "ready": sum(has_condition(pod, "Ready") for pod in active),
            "succeeded": len(_done(job)),
        }

    def _make_pods(self, job: Object, active: list[Object]) -> None:
        job["status"].setdefault("startTime", now())
        self._started.setdefault(job["metadata"]["uid"], time.monotonic())
        taken = {pod["metadata"]["labels"][_INDEX] for pod in active} | set(_done(job))
        for index in map(str, range(job["spec"]["completions"])):
            if index not in taken:
                self._store.add("pods", _pod_of(job, index))

    def _count(self, job: Object, pods: list[Object]) -> None:
        for pod in pods:
            metadata = pod["metadata"]
            if pod["status"].get("phase") not in ("Succeeded", "Failed"):
                continue
            if metadata["annotations"].get(_COUNTED):
                continue
            metadata["annotations"][_COUNTED] = "true"
            if pod["status"]["phase"] == "Succeeded":
                done = sorted({*_done(job), metadata["labels"][_INDEX]})
                job["status"]["completedIndexes"] = ",".join(done)
            elif not is_deleted(job) and not has_condition(job, "FailureTarget"):
                self._decide(job, pod)

    def _decide(self, job: Object, pod: Object) -> None:
        rules = job["spec"].get("podFailurePolicy", {}).get("rules", [])
        which = f"pod {pod['metadata']['namespace']}/{pod['metadata']['name']}"
        for number, rule in enumerate(rules):
            if because := _match(rule, pod):
                if rule["action"] == "Ignore":
                    return
                if rule["action"] == "FailJob":
                    message = f"{because.format(which)} matching FailJob rule at index {number}"
                    set_condition(job, "FailureTarget", "PodFailurePolicy", message)
                    return
                break
        job["status"]["failed"] = job["status"].get("failed", 0) + 1
        if job["status"]["failed"] > job["spec"].get("backoffLimit", 6):
            message = "Job has reached the specified backoff limit"
            set_condition(job, "FailureTarget", "BackoffLimitExceeded", message)

    def _check_deadline(self, job: Object) -> None:
        limit_s = job["spec"].get("activeDeadlineSeconds")
        started = self._started.get(job["metadata"]["uid"])
        is_over = limit_s and started and time.monotonic() - started > limit_s
        if is_over and not has_condition(job, "FailureTarget"):
            message = "Job was active longer than specified deadline"
            set_condition(job, "FailureTarget", "DeadlineExceeded", message)

    def _delete_all(self, job: Object, active: list[Object]) -> None:
        for pod in active:
            delete(pod)
        if not active:
            for kind in ("pods", "services"):
                for each in self._store.owned(kind, job):
                    self._store.remove(kind, each)
            self._store.remove("jobs", job)

    def _forget_deleted(self, pods: list[Object]) -> None:
        """Let a pod that was deleted go, once its end is counted."""
        for pod in pods:
            if is_deleted(pod) and pod["metadata"]["annotations"].get(_COUNTED):
                self._store.remove("pods", pod)


class TrainJobController:
    """Makes the one Job of a TrainJob, as the runtime `torch-distributed` has it."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def sync(self, train_job: Object) -> None:
        """Take a TrainJob a step further."""
        jobs = self._store.owned("jobs", train_job)
        if is_deleted(train_job):
            for job in jobs:
                delete(job)
            if not jobs:
                self._store.remove("trainjobs", train_job)
            return
        if not jobs:
            self._store.add("jobs", _job_of(train_job))
            return
        for kind in ("Complete", "Failed"):
            if has_condition(jobs[0], kind) and not has_condition(train_job, kind):
                because = _condition(jobs[0], kind)
                set_condition(train_job, kind, f"Jobs{kind}", because["message"])
        status = jobs[0]["status"]
        is_ready = status.get("ready", 0) == jobs[0]["spec"]["parallelism"]
        train_job["status"]["jobsStatus"] = [{"name": _NODE_JOB, "ready": int(is_ready)}]


def _pod_of(job: Object, index: str) -> Object:
    template = copy.deepcopy(job["spec"]["template"])
    metadata, name = job["metadata"], job["metadata"]["name"]
    labels = {
        **template["metadata"].get("labels", {}),
        _INDEX: index,
        "batch.kubernetes.io/job-name": name,
        "batch.kubernetes.io/controller-uid": metadata["uid"],
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"{name}-{index}-{suffix()}",
            "namespace": metadata["namespace"],
            "labels": labels,
            "annotations": dict(template["metadata"].get("annotations", {})),
            "ownerReferences": [_owner(job)],
        },
        "spec": template["spec"],
    }


def _job_of(train_job: Object) -> Object:
    metadata, spec = train_job["metadata"], train_job["spec"]
    trainer = spec["trainer"]
    (patch,) = spec["runtimePatches"]
    (node,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = copy.deepcopy(node["template"]["spec"]["template"])
    (container,) = pod["spec"]["containers"]
    name = f"{metadata['name']}-{_NODE_JOB}-0"
    torch = {
        "PET_NNODES": trainer["numNodes"],
        "PET_NPROC_PER_NODE": trainer["numProcPerNode"],
        "PET_MASTER_ADDR": f"{name}-0.{metadata['name']}.svc",
        "PET_MASTER_PORT": 29400,
    }
    env = [{"name": each, "value": str(value)} for each, value in torch.items()]
    container |= {
        "image": trainer["image"],
        "command": trainer["command"],
        "resources": trainer["resourcesPerNode"],
        "env": [*trainer["env"], *env],
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": name,
            "namespace": metadata["namespace"],
            "ownerReferences": [_owner(train_job)],
        },
        "spec": {
            "completionMode": "Indexed",
            "completions": trainer["numNodes"],
            "parallelism": trainer["numNodes"],
            "backoffLimit": 0,
            "template": {**pod, "spec": {**pod["spec"], "restartPolicy": "Never"}},
        },
    }


def _match(rule: Object, pod: Object) -> str | None:
    """Return why a rule fits, with a place for the name of the pod."""
    if on := rule.get("onExitCodes"):
        for each in pod["status"].get("containerStatuses", []):
            code = each["state"].get("terminated", {}).get("exitCode", 0)
            is_in = code in on["values"]
            if code != 0 and is_in == (on["operator"] == "In"):
                return f"Container {each['name']} for {{}} failed with exit code {code}"
    for pattern in rule.get("onPodConditions", []):
        if has_condition(pod, pattern["type"]):
            return f"Pod {{}} has condition {pattern['type']}"
    return None


def _owner(of: Object) -> dict[str, Any]:
    names = {"name": of["metadata"]["name"], "uid": of["metadata"]["uid"]}
    return {"apiVersion": of["apiVersion"], "kind": of["kind"], "controller": True, **names}


def _condition(of: Object, kind: str) -> Object:
    found: Object = next(each for each in of["status"]["conditions"] if each["type"] == kind)
    return found


def _is_over(job: Object) -> bool:
    return has_condition(job, "Complete") or has_condition(job, "Failed")


def _done(job: Object) -> list[str]:
    return [index for index in job["status"].get("completedIndexes", "").split(",") if index]
