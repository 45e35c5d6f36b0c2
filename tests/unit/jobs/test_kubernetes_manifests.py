from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from kubeflow_trainer_api.models import TrainerV1alpha1TrainJob
from pydantic import ValidationError

from alignflow.config import Config
from alignflow.errors import ConfigError
from alignflow.jobs.kubernetes.config import KubernetesConfig, SecretKey, Toleration, Volume
from alignflow.jobs.kubernetes.manifests import Manifest, manifests
from alignflow.jobs.kubernetes.names import object_name
from alignflow.jobs.run_folder import RunFolder
from alignflow.jobs.spec import JobSpec

ROOT = Path(__file__).parents[3]
FOLDER = RunFolder(Path("/mnt/alignflow/jobs/sft-12ab"))
SPEC = JobSpec(
    name="sft-12ab",
    module="alignflow.training",
    config={"learning_rate": 0.125},
    nodes=2,
    processes_per_node=8,
    gpus_per_node=8,
    time_limit_s=3600,
)
LEAST: dict[str, Any] = {
    "image": "registry.example/alignflow:1",
    "volumes": [{"claim": "alignflow", "mount_path": "/mnt/alignflow"}],
}
# Every field that both templates can say.
MOST: dict[str, Any] = {
    **LEAST,
    "namespace": "training",
    "python": "/opt/venv/bin/python",
    "volumes": [
        {"claim": "alignflow", "mount_path": "/mnt/alignflow", "sub_path": "team-a"},
        {"claim": "models", "mount_path": "/models", "read_only": True},
    ],
    "processes_per_node": 8,
    "cpus_per_process": 12,
    "memory": "400Gi",
    "shared_memory": "64Gi",
    "resources": {"rdma/hca": "1"},
    "node_selector": {"nvidia.com/gpu.product": "NVIDIA-H200"},
    "tolerations": [
        {"key": "nvidia.com/gpu", "effect": "NoSchedule"},
        {"key": "team", "operator": "Equal", "value": "a"},
    ],
    "queue": "training",
    "service_account": "training-jobs",
    "image_pull_secrets": ["registry"],
    "run_as_user": 1000,
    "run_as_group": 1000,
    "fs_group": 1000,
    "env": {"NCCL_DEBUG": "WARN"},
    "env_secrets": {"AWS_SECRET_ACCESS_KEY": {"secret": "s3", "key": "secret-key"}},
    "labels": {"team": "a"},
    "annotations": {"sidecar.istio.io/inject": "false"},
    "termination_grace_s": 300,
}
OF_A_JOB: dict[str, Any] = {
    "priority_class": "batch",
    "image_pull_policy": "Always",
    "env_from_secrets": ["tracking"],
    "max_restarts": 3,
    "ttl_after_finished_s": 600,
    "requeue": False,
}


def rendered(fields: dict[str, Any], **changes: Any) -> list[Manifest]:
    config = KubernetesConfig.model_validate(fields)
    return manifests(SPEC.replaced(**changes), FOLDER, config, attempt=1)


# The first has all fields that are used as stable ones or were still beta; the last is the newest.
@pytest.mark.parametrize("version", ["1.31", "1.34", "1.37"])
@pytest.mark.parametrize(
    "fields", [LEAST, MOST, {**MOST, **OF_A_JOB}], ids=["least", "most", "job"]
)
def test_objects_are_what_the_api_takes(version: str, fields: dict[str, Any]) -> None:
    objects = rendered(fields)
    assert [each["kind"] for each in objects] == ["Job", "Service"]
    for each in objects:
        kubernetes_validate.validate(each, version, strict=True)


@pytest.mark.parametrize("fields", [LEAST, MOST], ids=["least", "most"])
def test_train_job_is_what_kubeflow_takes(fields: dict[str, Any]) -> None:
    (train_job,) = rendered({**fields, "template": "train_job"})
    # What the model doesn't know doesn't come back.
    assert TrainerV1alpha1TrainJob.from_dict(train_job).to_dict() == train_job


def test_job_says_what_the_recipe_says() -> None:
    job, service = rendered({**MOST, **OF_A_JOB})
    name = object_name("sft-12ab", FOLDER, 1)
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "training"
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    assert (spec["completions"], spec["parallelism"], spec["backoffLimit"]) == (2, 2, 0)
    assert spec["activeDeadlineSeconds"] == 3600
    assert spec["ttlSecondsAfterFinished"] == 600
    assert pod["subdomain"] == service["metadata"]["name"] == name
    assert pod["priorityClassName"] == "batch"
    assert pod["terminationGracePeriodSeconds"] == 300
    assert pod["securityContext"]["runAsNonRoot"] is True
    (main,) = pod["containers"]
    assert main["command"] == [
        "/opt/venv/bin/python",
        "-m",
        "alignflow.jobs.kubernetes.pod",
        "/mnt/alignflow/jobs/sft-12ab",
        "1",
    ]
    # 8 processes of 12 cores; cores have no limit, what can't be shared has.
    held = {"memory": "400Gi", "rdma/hca": "1", "nvidia.com/gpu": "8"}
    assert main["resources"] == {"requests": {"cpu": "96", **held}, "limits": held}
    assert main["envFrom"] == [{"secretRef": {"name": "tracking"}}]
    environment = {each["name"]: each.get("value") for each in main["env"]}
    assert environment["ALIGNFLOW_MASTER_ADDRESS"] == f"{name}-0.{name}.training.svc"
    assert environment["AWS_SECRET_ACCESS_KEY"] is None  # a reference
    assert "learning_rate" not in str(job)  # that is in the run folder


def test_job_on_the_cpu_of_one_node_asks_for_no_gpu_and_no_service() -> None:
    (job,) = rendered(LEAST, nodes=1, processes_per_node=1, gpus_per_node=0, time_limit_s=None)
    pod = job["spec"]["template"]["spec"]
    assert pod["containers"][0]["resources"] == {"requests": {"cpu": "1"}}
    assert "activeDeadlineSeconds" not in job["spec"]
    assert "subdomain" not in pod


def test_train_job_patches_the_runtime_where_its_own_fields_end() -> None:
    (train_job,) = rendered({**MOST, "template": "train_job", "runtime": "torch-a"})
    spec = train_job["spec"]
    assert spec["runtimeRef"] == {"name": "torch-a"}
    assert (spec["trainer"]["numNodes"], spec["trainer"]["numProcPerNode"]) == (2, 8)
    (patch,) = spec["runtimePatches"]
    (node,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = node["template"]["spec"]["template"]["spec"]
    assert pod["serviceAccountName"] == "training-jobs"
    assert pod["containers"][0]["name"] == node["name"] == "node"


def test_names_are_labels_whatever_the_job_is_called() -> None:
    folders = [RunFolder(Path(f"/mnt/{name}")) for name in ("a", "b")]
    longest = object_name("9" + "x" * 61 + "-", folders[0], 999)
    assert len(f"{longest}-node-0-99") <= 63
    assert longest[0].isalpha()
    assert object_name("sft", folders[0], 1) != object_name("sft", folders[1], 1)
    assert object_name("sft", folders[0], 1) == object_name("sft", folders[0], 1)


def test_run_folder_that_pods_do_not_see_is_refused() -> None:
    config = KubernetesConfig.model_validate(LEAST)
    with pytest.raises(ConfigError, match="lies in no volume that pods can write"):
        manifests(SPEC, RunFolder(Path("/home/a/run")), config, attempt=1)
    read_only = {**LEAST["volumes"][0], "read_only": True}
    config = KubernetesConfig.model_validate({**LEAST, "volumes": [read_only]})
    with pytest.raises(ConfigError, match="none is writable"):
        manifests(SPEC, FOLDER, config, attempt=1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"namespace": "Training"}, "namespace"),
        ({"namespace": "a.b"}, "namespace"),
        ({"namespace": "x" * 64}, "namespace"),
        ({"service_account": "-a"}, "service_account"),
        ({"volumes": []}, "volumes"),
        ({"volumes": [{"claim": "a", "mount_path": "mnt"}]}, "absolute path"),
        ({"volumes": [{"claim": "a", "mount_path": "/mnt/../etc"}]}, "absolute path"),
        ({"volumes": [LEAST["volumes"][0]] * 2}, "same mount_path"),
        ({"node_selector": {"a b": "c"}}, "no key of a label"),
        ({"node_selector": {"a": "c d"}}, "node_selector"),
        ({"memory": "64 GB"}, "memory"),
        ({"env": {"AWS_SECRET_ACCESS_KEY": "hunter2"}}, "looks like a secret"),
        ({"env": {"HF_TOKEN": "hunter2"}}, "looks like a secret"),
        (
            {"env": {"A": "1"}, "env_secrets": {"A": {"secret": "s", "key": "k"}}},
            "stands in env and in env_secrets",
        ),
        ({"tolerations": [{"key": "a", "value": "b"}]}, "operator Equal"),
        ({"tolerations": [{"operator": "Equal", "value": "b"}]}, "without a key"),
        ({"run_as_user": 0}, "run_as_user"),
        ({"runtime": "torch-a"}, "runtime does nothing with template job"),
        ({"template": "train_job", "priority_class": "a"}, "say it in the runtime"),
        ({"gpus": 8}, "gpus"),
    ],
)
def test_what_a_cluster_would_refuse_is_refused_first(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        KubernetesConfig.model_validate({**LEAST, **fields})


@pytest.mark.parametrize("path", sorted((ROOT / "deployments/kubernetes").glob("*.yaml")))
def test_objects_that_are_shipped_are_what_the_api_takes(path: Path) -> None:
    for each in yaml.safe_load_all(path.read_text()):
        kubernetes_validate.validate(each, "1.34", strict=True)


@pytest.mark.parametrize("model", [KubernetesConfig, Volume, SecretKey, Toleration])
def test_every_field_is_documented(model: type[Config]) -> None:
    assert not [name for name, field in model.model_fields.items() if not field.description]
