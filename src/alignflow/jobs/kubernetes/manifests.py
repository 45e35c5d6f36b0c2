"""The objects that a job becomes, as plain data: nothing of the environment gets into them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignflow.errors import ConfigError
from alignflow.jobs.kubernetes.config import KubernetesConfig, Template
from alignflow.jobs.kubernetes.names import (
    ADDRESS_VARIABLE,
    FOLDER_ANNOTATION,
    JOB_LABEL,
    JOB_VARIABLE,
    RESTART_CODE,
    host_of_first_pod,
    object_name,
    port_of,
)
from alignflow.jobs.run_folder import RunFolder
from alignflow.jobs.spec import JobSpec

Manifest = dict[str, Any]

QUEUE_LABEL = "kueue.x-k8s.io/queue-name"

# The container of a pod: Kubeflow's runtimes call theirs `node`.
CONTAINERS: dict[Template, str] = {"job": "main", "train_job": "node"}
_PATCHES = "alignflow/launcher"
_SIGTERM_STATUS = 128 + 15


def manifests(
    spec: JobSpec, folder: RunFolder, config: KubernetesConfig, *, attempt: int
) -> list[Manifest]:
    """Return the objects of a job: the job, and the Service by which its pods find each other.

    Raises:
        ConfigError: The run folder is in none of the volumes.
    """
    check_is_mounted(folder.path, config)
    job = _Job(spec, folder, config, attempt)
    if config.template == "train_job":
        return [job.train_job()]
    return [job.indexed_job(), *([job.service()] if spec.nodes > 1 else [])]


def check_is_mounted(path: Path, config: KubernetesConfig) -> None:
    """Refuse a folder that the pods would not see under its own path.

    Raises:
        ConfigError: It lies in none of the volumes.
    """
    mounts = [volume.mount_path for volume in config.volumes if not volume.read_only]
    if not any(path.is_relative_to(mount) for mount in mounts):
        raise ConfigError(
            f"{path} lies in no volume that pods can write "
            f"({', '.join(mounts) or 'none is writable'}); put the workspace into one, which "
            "cluster.kubernetes.volumes mounts at the same path as this machine."
        )


class _Job:
    """One job to be rendered."""

    def __init__(
        self, spec: JobSpec, folder: RunFolder, config: KubernetesConfig, attempt: int
    ) -> None:
        self._spec = spec
        self._folder = folder
        self._config = config
        self._attempt = attempt
        self._name = object_name(spec.name, folder, attempt)

    def indexed_job(self) -> Manifest:
        """Return a Job of one pod a node."""
        config, spec = self._config, self._spec
        return {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": self._metadata(),
            "spec": _without_none(
                completionMode="Indexed",
                completions=spec.nodes,
                parallelism=spec.nodes,
                # One restart of the job may be that of all its pods.
                backoffLimit=config.max_restarts * spec.nodes if config.requeue else 0,
                podFailurePolicy={"rules": _failure_rules(requeue=config.requeue)},
                podReplacementPolicy="Failed",  # never two pods of one index
                activeDeadlineSeconds=spec.time_limit_s,
                ttlSecondsAfterFinished=config.ttl_after_finished_s,
                template={"metadata": self._pod_metadata(), "spec": self._pod()},
            ),
        }

    def service(self) -> Manifest:
        """Return the headless Service that gives the pods names; the launcher sets its owner."""
        return {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": self._metadata(),
            "spec": {
                "clusterIP": "None",
                "publishNotReadyAddresses": True,  # pods look for each other before they are ready
                "selector": {JOB_LABEL: self._name},
                "ports": [{"name": "rendezvous", "port": port_of(self._name)}],
            },
        }

    def train_job(self) -> Manifest:
        """Return a TrainJob; what it can't say is its runtime's."""
        config, spec = self._config, self._spec
        pod_spec = _without_none(
            serviceAccountName=config.service_account,
            nodeSelector=config.node_selector or None,
            tolerations=_tolerations(config),
            imagePullSecrets=_references(config.image_pull_secrets) or None,
            terminationGracePeriodSeconds=config.termination_grace_s,
            securityContext=self._pod_security(),
            volumes=self._volumes(),
            containers=[
                {
                    "name": CONTAINERS["train_job"],
                    "securityContext": _CONTAINER_SECURITY,
                    "volumeMounts": self._mounts(),
                }
            ],
        )
        pod = {"metadata": self._pod_metadata(), "spec": pod_spec}
        node = {"name": "node", "template": {"spec": {"template": pod}}}
        patch = {"template": {"spec": {"replicatedJobs": [node]}}}
        return {
            "apiVersion": "trainer.kubeflow.org/v1alpha1",
            "kind": "TrainJob",
            "metadata": self._metadata(),
            "spec": _without_none(
                runtimeRef={"name": config.runtime},
                activeDeadlineSeconds=spec.time_limit_s,
                trainer={
                    "image": config.image,
                    "command": self._command(),
                    "numNodes": spec.nodes,
                    "numProcPerNode": spec.processes_per_node,
                    "resourcesPerNode": self._resources(),
                    "env": self._environment(address=None),
                },
                runtimePatches=[{"manager": _PATCHES, "trainingRuntimeSpec": patch}],
            ),
        }

    def _metadata(self) -> Manifest:
        queue = {QUEUE_LABEL: self._config.queue} if self._config.queue else {}
        return {
            "name": self._name,
            "namespace": self._config.namespace,
            "labels": {**self._labels(), **queue},
            "annotations": {
                **self._config.annotations,
                FOLDER_ANNOTATION: str(self._folder.path),
            },
        }

    def _pod_metadata(self) -> Manifest:
        return _without_none(
            labels=self._labels(), annotations=dict(self._config.annotations) or None
        )

    def _labels(self) -> dict[str, str]:
        return {
            **self._config.labels,
            "app.kubernetes.io/name": "alignflow",
            "app.kubernetes.io/managed-by": "alignflow",
            JOB_LABEL: self._name,
        }

    def _pod(self) -> Manifest:
        config = self._config
        address = host_of_first_pod(self._name, config.namespace) if self._spec.nodes > 1 else None
        return _without_none(
            restartPolicy="Never",  # the Job's policy says which failures start a pod again
            subdomain=self._name if address else None,
            serviceAccountName=config.service_account,
            automountServiceAccountToken=False,
            enableServiceLinks=False,
            imagePullSecrets=_references(config.image_pull_secrets) or None,
            priorityClassName=config.priority_class,
            nodeSelector=dict(config.node_selector) or None,
            tolerations=_tolerations(config),
            terminationGracePeriodSeconds=config.termination_grace_s,
            securityContext=self._pod_security(),
            containers=[
                _without_none(
                    name=CONTAINERS["job"],
                    image=config.image,
                    imagePullPolicy=config.image_pull_policy,
                    command=self._command(),
                    env=self._environment(address),
                    envFrom=[{"secretRef": each} for each in _references(config.env_from_secrets)]
                    or None,
                    resources=self._resources(),
                    securityContext=_CONTAINER_SECURITY,
                    volumeMounts=self._mounts(),
                )
            ],
            volumes=self._volumes(),
        )

    def _command(self) -> list[str]:
        module = [self._config.python, "-m", "alignflow.jobs.kubernetes.pod"]
        return [*module, str(self._folder.path), str(self._attempt)]

    def _environment(self, address: str | None) -> list[Manifest]:
        plain = {**self._config.env, JOB_VARIABLE: self._name}
        if address is not None:
            plain[ADDRESS_VARIABLE] = address
        return [
            *({"name": name, "value": value} for name, value in plain.items()),
            *(
                {
                    "name": name,
                    "valueFrom": {"secretKeyRef": {"name": at.secret, "key": at.key}},
                }
                for name, at in self._config.env_secrets.items()
            ),
        ]

    def _resources(self) -> Manifest:
        config, spec = self._config, self._spec
        both = _without_none(memory=config.memory, **config.resources)
        if spec.gpus_per_node:
            both[config.gpu_resource] = str(spec.gpus_per_node)
        # Without a limit of its own a pod uses what cores its node has to spare.
        cpus = str(spec.processes_per_node * config.cpus_per_process)
        return _without_none(requests={"cpu": cpus, **both}, limits=both or None)

    def _pod_security(self) -> Manifest:
        return _without_none(
            runAsNonRoot=True,
            runAsUser=self._config.run_as_user,
            runAsGroup=self._config.run_as_group,
            fsGroup=self._config.fs_group,
            seccompProfile={"type": "RuntimeDefault"},
        )

    def _volumes(self) -> list[Manifest]:
        claims = [
            {
                "name": f"volume-{number}",
                "persistentVolumeClaim": _without_none(
                    claimName=volume.claim, readOnly=volume.read_only or None
                ),
            }
            for number, volume in enumerate(self._config.volumes)
        ]
        memory = self._config.shared_memory
        if memory is None:
            return claims
        return [*claims, {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": memory}}]

    def _mounts(self) -> list[Manifest]:
        mounts = [
            _without_none(
                name=f"volume-{number}",
                mountPath=volume.mount_path,
                subPath=volume.sub_path,
                readOnly=volume.read_only or None,
            )
            for number, volume in enumerate(self._config.volumes)
        ]
        shm = {"name": "shm", "mountPath": "/dev/shm"}
        return mounts if self._config.shared_memory is None else [*mounts, shm]


_CONTAINER_SECURITY = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def _failure_rules(*, requeue: bool) -> list[Manifest]:
    """Return what becomes of a Job when one of its pods fails; the first rule that fits counts."""
    container = CONTAINERS["job"]

    def exits(operator: str, *codes: int) -> Manifest:
        values = list(codes)
        return {"containerName": container, "operator": operator, "values": values}

    disturbed = [{"type": "DisruptionTarget", "status": "True"}]
    return [
        # The pod says that starting again is of no use, even where it was disturbed.
        {"action": "FailJob", "onExitCodes": exits("In", 1, 2)},
        # Evicted, preempted, or on a node that is lost: that is no fault of the job.
        {"action": "Ignore" if requeue else "FailJob", "onPodConditions": disturbed},
        # Killed by its memory limit, a broken image: no better the next time.
        {"action": "FailJob", "onExitCodes": exits("NotIn", RESTART_CODE, _SIGTERM_STATUS)},
    ]


def _tolerations(config: KubernetesConfig) -> list[Manifest] | None:
    return [each.model_dump(exclude_none=True) for each in config.tolerations] or None


def _references(names: list[str]) -> list[Manifest]:
    return [{"name": name} for name in names]


def _without_none(**fields: Any) -> Manifest:
    return {name: value for name, value in fields.items() if value is not None}


def run_folder_of(manifest: Mapping[str, Any]) -> str | None:
    """Return the run folder that an object of the cluster belongs to."""
    folder = manifest["metadata"].get("annotations", {}).get(FOLDER_ANNOTATION)
    return None if folder is None else str(folder)
