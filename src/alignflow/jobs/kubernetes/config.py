"""What a recipe says about a Kubernetes cluster."""

import re
from pathlib import PurePosixPath
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, PositiveInt, model_validator

from alignflow.config import Config

Template = Literal["job", "train_job"]

# What a TrainJob can't say.
_OF_A_JOB = (
    "priority_class",
    "image_pull_policy",
    "env_from_secrets",
    "max_restarts",
    "ttl_after_finished_s",
)
_LABEL_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
_SUBDOMAIN = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")
_SECRET = re.compile(r"SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL|PRIVATE|API_?KEY|ACCESS_KEY")


def _key(value: str) -> str:
    prefix, slash, name = value.rpartition("/")
    is_prefix = not slash or (len(prefix) <= 253 and _SUBDOMAIN.fullmatch(prefix))
    if not is_prefix or not _LABEL_NAME.fullmatch(name):
        raise ValueError(f"{value!r} is no key of a label; write name or example.org/name")
    return value


def _absolute(value: str) -> str:
    path = PurePosixPath(value)
    if not path.is_absolute() or ".." in path.parts or ":" in value or str(path) == "/":
        raise ValueError(f"{value!r} must be an absolute path below /, without .. and colons")
    return str(path)


DnsLabel = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
"""A name as RFC 1123 has labels."""
DnsName = Annotated[
    str,
    Field(
        pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$",
        max_length=253,
    ),
]
"""A name as RFC 1123 has subdomains."""
_LabelKey = Annotated[str, AfterValidator(_key)]
_LabelValue = Annotated[
    str, Field(pattern=r"^([A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?)?$", max_length=63)
]
_Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
_Quantity = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(m|k|Ki|[MGTPE]i?)?$")]
_Path = Annotated[str, AfterValidator(_absolute)]
_Word = Annotated[str, Field(pattern=r"^\S+$")]


class Volume(Config):
    """A PersistentVolumeClaim that the pods mount."""

    claim: DnsName
    """Name of the claim, in the namespace of the jobs."""
    mount_path: _Path
    """Where it is mounted: the same path as on the machine that runs the pipeline."""
    sub_path: str | None = Field(default=None, pattern=r"^[^/:][^:]*$")
    """Folder inside of the volume that is mounted instead of its root."""
    read_only: bool = False
    """Pods only read it, such as one of models."""


class SecretKey(Config):
    """A value that stays in the cluster: a key of a Secret."""

    secret: DnsName
    """Name of the Secret, in the namespace of the jobs."""
    key: Annotated[str, Field(pattern=r"^[-._A-Za-z0-9]+$", max_length=253)]
    """Key in it."""


class Toleration(Config):
    """What makes a pod bear a taint of a node."""

    key: _LabelKey | None = None
    """None tolerates every key, with operator Exists."""
    operator: Literal["Exists", "Equal"] = "Exists"
    """Exists takes any value of the taint, Equal the one that is given."""
    value: _LabelValue | None = None
    """Value of the taint, with operator Equal."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """None is every effect."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if (self.operator == "Equal") != (self.value is not None):
            raise ValueError("a toleration has a value with operator Equal, and only then")
        if self.key is None and self.operator != "Exists":
            raise ValueError("a toleration without a key has operator Exists")
        return self


class KubernetesConfig(Config):
    """How jobs are submitted to Kubernetes."""

    template: Template = "job"
    """`job` is an Indexed Job of batch/v1, one pod a node; `train_job` a TrainJob of Kubeflow
    Trainer 2.2 or later (trainer.kubeflow.org/v1alpha1)."""
    runtime: DnsName = "torch-distributed"
    """ClusterTrainingRuntime of a TrainJob."""
    context: Annotated[str, Field(min_length=1)] | None = None
    """Context of the kubeconfig; None is the current one, or inside of a pod its own cluster."""
    namespace: DnsLabel = "default"
    """Namespace of the jobs."""
    image: _Word
    """Image that has alignflow."""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    """None is the cluster's default."""
    image_pull_secrets: list[DnsName] = []
    """Secrets by which the image is pulled."""
    python: _Word = "python"
    """Interpreter in the image."""
    volumes: Annotated[list[Volume], Field(min_length=1)]
    """Claims that the pods mount; one of them holds the workspace, and is ReadWriteMany where
    pods run on several nodes."""
    processes_per_node: PositiveInt = 1
    """On GPUs: GPUs a pod."""
    cpus_per_process: PositiveInt = 1
    """Cores that a pod asks for, times its processes; it may use what its node has to spare."""
    memory: _Quantity | None = None
    """Of each pod, request and limit, such as `64Gi`; None is the namespace's default."""
    shared_memory: _Quantity | None = None
    """Size of /dev/shm, which data loaders and NCCL use and which counts as memory; None is 64 MiB
    with most container runtimes."""
    gpu_resource: _LabelKey = "nvidia.com/gpu"
    """Name under which the cluster has GPUs."""
    resources: dict[_LabelKey, _Quantity] = {}
    """Further resources of each pod, such as `rdma/hca: 1`."""
    node_selector: dict[_LabelKey, _LabelValue] = {}
    """Labels that a node must have."""
    tolerations: list[Toleration] = []
    """Taints of nodes on which pods may be placed all the same."""
    priority_class: DnsName | None = None
    """PriorityClass of the pods."""
    queue: DnsName | None = None
    """LocalQueue of Kueue in which jobs wait."""
    service_account: DnsName | None = None
    """ServiceAccount of the pods, which get no token of it; None is the namespace's default."""
    run_as_user: PositiveInt = 10001
    """User of the processes, who must be able to write the workspace; never root."""
    run_as_group: PositiveInt | None = None
    """Group of the processes; None is that of the user in the image."""
    fs_group: PositiveInt | None = None
    """Group that owns the volumes, where their driver can do that."""
    env: dict[_Variable, str] = {}
    """Variables of the environment; no secrets."""
    env_secrets: dict[_Variable, SecretKey] = {}
    """Variables whose values are keys of Secrets, such as the credentials of an S3 store."""
    env_from_secrets: list[DnsName] = []
    """Secrets of which every key becomes a variable."""
    labels: dict[_LabelKey, _LabelValue] = {}
    """Further labels of the job and its pods."""
    annotations: dict[_LabelKey, str] = {}
    """Further annotations of the job and its pods."""
    requeue: bool = True
    """Let a job that is evicted, preempted or loses a node go on by itself from its last
    checkpoint, as the same Job."""
    max_restarts: PositiveInt = 5
    """How often it goes on by itself where the cluster doesn't say that it disturbed a pod."""
    termination_grace_s: Annotated[int, Field(ge=15)] = 120
    """Seconds that an evicted job has to save a checkpoint."""
    ttl_after_finished_s: PositiveInt = 86_400
    """How long Kubernetes keeps a Job that has ended, for `kubectl`; its run folder stays."""

    @model_validator(mode="after")
    def _secrets_are_references(self) -> Self:
        for name in self.env:
            if _SECRET.search(name.upper()):
                raise ValueError(
                    f"env.{name}: looks like a secret, which a manifest must not hold; "
                    "put it into a Secret and name that in env_secrets"
                )
        if both := self.env.keys() & self.env_secrets.keys():
            raise ValueError(f"{min(both)} stands in env and in env_secrets; keep one")
        return self

    @model_validator(mode="after")
    def _mounts_differ(self) -> Self:
        paths = [volume.mount_path for volume in self.volumes]
        if len(set(paths)) < len(paths):
            raise ValueError("volumes: two have the same mount_path")
        return self

    @model_validator(mode="after")
    def _template_can_say_it(self) -> Self:
        fields = type(self).model_fields
        for name in _OF_A_JOB if self.template == "train_job" else ("runtime",):
            if getattr(self, name) != fields[name].default:
                hint = (
                    "it is of template train_job" if name == "runtime" else "say it in the runtime"
                )
                raise ValueError(f"{name} does nothing with template {self.template}: {hint}")
        return self
