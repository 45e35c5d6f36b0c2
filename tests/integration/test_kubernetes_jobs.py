"""What only a cluster of pods does: evictions, lost nodes, limits, an API server away.

The cluster is a stub: `tests/support/kube_cluster.py`.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kube_node
import pytest
import yaml
from counting import FOR_EVER, counting, failure_of, finish, has_seen_steps, until
from kube_cluster import NAMESPACE, KubeCluster, config_for

from alignflow.errors import ConfigError, JobError
from alignflow.jobs.kubernetes.api import Api, ApiAwayError
from alignflow.jobs.kubernetes.config import SecretKey
from alignflow.jobs.kubernetes.launcher import KubernetesJob, KubernetesLauncher
from alignflow.jobs.kubernetes.manifests import manifests
from alignflow.jobs.processes import kill_all, processes_of_job
from alignflow.jobs.run_folder import RunFolder
from alignflow.jobs.spec import FailureKind, JobStatus

pytestmark = pytest.mark.integration

# All pods are on this machine.
LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo"}


@pytest.fixture
def folder(
    tmp_path: Path, kube: KubeCluster, monkeypatch: pytest.MonkeyPatch
) -> Iterator[RunFolder]:
    monkeypatch.setenv("KUBECONFIG", str(kube.kubeconfig))
    folder = RunFolder(tmp_path / "run")
    yield folder
    if folder.handle.exists():
        KubernetesJob(folder).cancel(grace_s=0)
    assert not kill_all(lambda: processes_of_job(folder.path))


def start(
    folder: RunFolder,
    config: dict[str, Any],
    cluster: dict[str, Any] | None = None,
    **changes: Any,
) -> KubernetesJob:
    launcher = KubernetesLauncher(config_for(folder.path.parent, **(cluster or {})))
    return launcher.submit(counting(config, **changes), folder)


def name_of(job: KubernetesJob) -> str:
    return job.id.rpartition("/")[2]


def assert_resumed_once(folder: RunFolder, num_steps: int) -> None:
    """Each step was counted once but for the one that a kill may have left unsaved."""
    rows = folder.metric_reader().read_new()
    first = [row["step"] for row in rows if row["attempt"] == "1"]
    second = [row["step"] for row in rows if row["attempt"] == "2"]
    assert first == list(range(len(first)))
    assert second == list(range(second[0], num_steps))
    assert second[0] in (len(first) - 1, len(first))


def test_client_uses_the_rights_of_the_role_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with KubeCluster().running() as cluster:
        monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
        api = Api(None, NAMESPACE)
        config = config_for(tmp_path, python="/bin/echo")
        spec = counting({}, nodes=2)
        job, service = manifests(spec, RunFolder(tmp_path), config, attempt=1)
        name = job["metadata"]["name"]
        assert api.create_job("job", job) is not None
        assert api.create_job("job", job) is None
        api.create_service(service)
        api.create_service(service)
        until(lambda: any(api.log_tail(pod["metadata"]["name"]) for pod in api.pods(name)))
        for pod in api.pods(name):
            api.kill_pod(pod["metadata"]["name"])
        api.kill_pod("no-such")
        (other,) = manifests(
            spec, RunFolder(tmp_path), config.replaced(template="train_job"), attempt=2
        )
        assert api.create_job("train_job", other) is not None
        for template, each in (("job", job), ("train_job", other)):
            its_name = each["metadata"]["name"]
            assert api.job(template, its_name) is not None  # type: ignore[arg-type]
            api.delete_job(template, its_name)  # type: ignore[arg-type]
            until(lambda t=template, n=its_name: api.job(t, n) is None)  # type: ignore[misc]
            api.delete_job(template, its_name)  # type: ignore[arg-type]
        assert cluster.used == cluster.rights

        cluster.rights.clear()
        with pytest.raises(ConfigError, match=r"Kubernetes refuses: .*cannot list.*rbac\.yaml"):
            api.pods(name)
        cluster.token = "another"
        with pytest.raises(ConfigError, match="doesn't know who asks"):
            api.pods(name)
        cluster.is_away = True
        with pytest.raises(ApiAwayError):
            api.pods(name)


def test_what_kubernetes_refuses_is_bad_input(folder: RunFolder) -> None:
    with pytest.raises(ConfigError, match='namespaces "elsewhere" not found'):
        start(folder, {"num_steps": 1}, {"namespace": "elsewhere"})
    assert not folder.handle.exists()


def test_no_way_to_a_cluster_is_bad_input(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="the kubeconfig has no no-such, but stub"):
        start(folder, {"num_steps": 1}, {"context": "no-such"})
    monkeypatch.setenv("KUBECONFIG", str(folder.path.parent / "no-such"))
    with pytest.raises(ConfigError, match="There is no way to the cluster"):
        start(folder, {"num_steps": 1})


def test_evicted_job_saves_and_goes_on_by_itself(folder: RunFolder, kube: KubeCluster) -> None:
    job = start(folder, {"num_steps": 150, "step_s": 0.05, "resumed_step_s": 0.001})
    name = job.id
    until(lambda: has_seen_steps(folder))
    kube.evict(kube.pod())
    finish(job, folder)
    assert (job.id, job.attempt) == (name, 2)
    assert_resumed_once(folder, 150)


def test_job_that_passes_its_memory_is_told_apart_and_not_started_again(
    folder: RunFolder, kube: KubeCluster
) -> None:
    job = start(folder, FOR_EVER)
    until(lambda: has_seen_steps(folder))
    kube.pass_memory(kube.pod())
    failure = failure_of(job, folder)
    assert failure.kind is FailureKind.OUT_OF_MEMORY
    assert not failure.retryable
    assert "passed its limit of memory" in failure.message
    assert job.attempt == 1


def test_job_of_a_submitter_that_died_before_it_wrote_the_name_is_found(
    folder: RunFolder, kube: KubeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = {"node_selector": {"zone": "a"}}
    first = start(folder, {"num_steps": 3}, where).id
    folder.handle.unlink()
    again = start(folder, {"num_steps": 3}, where)
    assert (again.id, again.status()) == (first, JobStatus.PENDING)
    assert "waits: Unschedulable: 0/1 nodes are available" in again.note()
    folder.handle.unlink()
    # Its pod comes up before anybody submits again.
    monkeypatch.setitem(kube_node.LABELS, "zone", "a")
    until(lambda: folder.read_result() is not None)
    assert KubernetesJob(folder).id == first
    assert finish(start(folder, {"num_steps": 3}, where), folder).metrics == {"count": 3.0}


def test_waiting_job_is_cancelled_in_the_cluster_it_is_in(
    folder: RunFolder, kube: KubeCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = start(folder, FOR_EVER, {"node_selector": {"zone": "b"}})
    # Meanwhile somebody turns to another cluster.
    config = yaml.safe_load(kube.kubeconfig.read_text())
    config["clusters"].append({"name": "gone", "cluster": {"server": "http://127.0.0.1:9"}})
    other = {"name": "other", "context": {"cluster": "gone", "user": "stub"}}
    config["contexts"].append(other)
    switched = tmp_path / "switched"
    switched.write_text(yaml.safe_dump({**config, "current-context": "other"}))
    monkeypatch.setenv("KUBECONFIG", str(switched))
    job.cancel()
    assert job.status() is JobStatus.CANCELLED
    assert not folder.metrics.exists()


def test_folder_that_pods_do_not_see_is_refused(folder: RunFolder, tmp_path: Path) -> None:
    launcher = KubernetesLauncher(config_for(tmp_path / "elsewhere"))
    with pytest.raises(ConfigError, match="lies in no volume"):
        launcher.submit(counting({}), folder)


@pytest.mark.slow
def test_ranks_are_spread_over_pods(folder: RunFolder, kube: KubeCluster) -> None:
    job = start(folder, {"num_steps": 3}, nodes=2, processes_per_node=2, env=_env())
    finish(job, folder)
    assert sorted(path.name for path in folder.checkpoints.iterdir()) == [
        f"rank-{rank}" for rank in range(4)
    ]
    log = folder.launcher_log.read_text()
    assert "--node-rank=0" in log
    assert "--node-rank=1" in log
    assert log.count("=== attempt ") == 1
    with kube.store.lock:
        services = kube.store.all("services")
    (owner,) = services[-1]["metadata"]["ownerReferences"]
    assert owner["name"] == name_of(job)


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1])
def test_job_that_loses_one_of_its_nodes_goes_on(
    folder: RunFolder, kube: KubeCluster, index: int
) -> None:
    job = start(folder, {"num_steps": 200, "step_s": 0.05}, nodes=2, env=_env())
    until(lambda: has_seen_steps(folder, 2))
    kube.lose(kube.pod(index))
    finish(job, folder)
    assert job.attempt == 2
    assert_resumed_once(folder, 200)


@pytest.mark.slow
def test_job_on_one_node_that_is_lost_goes_on(folder: RunFolder, kube: KubeCluster) -> None:
    job = start(folder, {"num_steps": 150, "step_s": 0.05})
    until(lambda: has_seen_steps(folder))
    kube.lose(kube.pod())
    finish(job, folder)
    assert job.attempt == 2
    assert_resumed_once(folder, 150)


@pytest.mark.slow
def test_error_in_one_pod_ends_the_others_and_the_job(folder: RunFolder, kube: KubeCluster) -> None:
    config = {"num_steps": 1, "fail": {"0": "connection", "1": "diverged"}, "delay_s": {"1": 0.3}}
    job = start(folder, config, nodes=2, env=_env())
    failure = failure_of(job, folder)
    assert failure.kind is FailureKind.DIVERGED
    assert job.attempt == 1


@pytest.mark.slow
def test_evicted_job_that_may_not_go_on_was_preempted(folder: RunFolder, kube: KubeCluster) -> None:
    job = start(folder, FOR_EVER, {"requeue": False})
    until(lambda: has_seen_steps(folder))
    kube.evict(kube.pod(), "PreemptionByScheduler")
    failure = failure_of(job, folder)
    assert failure.kind is FailureKind.PREEMPTED
    assert failure.retryable
    again = start(folder, {"num_steps": 1})
    assert again.attempt == 2
    finish(again, folder)


@pytest.mark.slow
def test_job_that_saved_nothing_does_not_go_round_in_a_circle(
    folder: RunFolder, kube: KubeCluster
) -> None:
    job = start(folder, {**FOR_EVER, "step_s": 10})
    until(lambda: has_seen_steps(folder))
    for saved in folder.checkpoints.iterdir():
        saved.unlink()
    kube.evict(kube.pod())
    assert failure_of(job, folder).kind is FailureKind.PREEMPTED
    assert job.attempt == 1


@pytest.mark.slow
def test_job_reaches_its_time_limit(folder: RunFolder) -> None:
    failure = failure_of(start(folder, FOR_EVER, time_limit_s=15), folder)
    assert failure.kind is FailureKind.TIME_LIMIT
    assert failure.retryable


@pytest.mark.slow
def test_job_that_somebody_else_deletes_is_cancelled(folder: RunFolder, kube: KubeCluster) -> None:
    job = start(folder, FOR_EVER)
    until(lambda: has_seen_steps(folder))
    kube.delete_job(name_of(job))
    failure = failure_of(job, folder)
    assert failure.kind is FailureKind.CANCELLED
    assert "Somebody deleted" in failure.message
    assert not processes_of_job(folder.path)


@pytest.mark.slow
def test_name_of_a_job_that_has_ended_is_free_again(folder: RunFolder) -> None:
    finish(start(folder, {"num_steps": 1}), folder)
    shutil.rmtree(folder.path)  # as where a stage is computed anew
    again = start(folder, {"num_steps": 2})
    assert finish(again, folder).metrics == {"count": 2.0}
    assert again.attempt == 1


@pytest.mark.slow
def test_secrets_reach_the_job_by_reference_alone(folder: RunFolder, kube: KubeCluster) -> None:
    secret = {"env_secrets": {"OMP_NUM_THREADS": SecretKey(secret="s3", key="threads")}}
    job = start(folder, {"num_steps": 1}, secret)
    until(lambda: job.note().endswith('CreateContainerConfigError: secret "s3" not found'))
    kube.secrets["s3"] = {"threads": "7351"}
    assert finish(job, folder).details["OMP_NUM_THREADS"] == "7351"
    written = [folder.path / name for name in ("kubernetes.yaml", "kubernetes.json", "job.json")]
    assert not [path for path in written if "7351" in path.read_text()]


@pytest.mark.slow
def test_image_without_alignflow_fails_with_what_its_pod_printed(folder: RunFolder) -> None:
    failure = failure_of(start(folder, {"num_steps": 1}, {"python": "/bin/ls"}), folder)
    assert failure.kind is FailureKind.ERROR
    assert "with code 2" in failure.message
    assert "alignflow.jobs.kubernetes.pod" in failure.log_tail


@pytest.mark.slow
def test_absence_of_the_api_server_says_nothing_about_the_job(
    folder: RunFolder, kube: KubeCluster, tmp_path: Path
) -> None:
    job = start(folder, FOR_EVER)
    until(lambda: has_seen_steps(folder))
    kube.is_away = True
    try:
        until(lambda: job.note() == "Kubernetes' API server doesn't answer")
        assert job.status() is JobStatus.RUNNING
        with pytest.raises(JobError, match="API server doesn't answer") as caught:
            start(RunFolder(tmp_path / "other"), {"num_steps": 1})
        assert caught.value.failure.retryable
    finally:
        kube.is_away = False
    until(lambda: job.note().startswith("running as attempt 1"))
    job.cancel()
    assert job.status() is JobStatus.CANCELLED


@pytest.mark.slow
def test_train_job_is_followed_and_cancelled(folder: RunFolder, kube: KubeCluster) -> None:
    template = {"template": "train_job"}
    job = start(folder, {"num_steps": 3}, template, nodes=2, env=_env())
    assert finish(job, folder).metrics == {"count": 3.0}
    shutil.rmtree(folder.path)
    job = start(folder, FOR_EVER, template)
    until(lambda: has_seen_steps(folder))
    until(lambda: job.status() is JobStatus.RUNNING)
    job.cancel()
    assert job.status() is JobStatus.CANCELLED
    assert not processes_of_job(folder.path)
    failure = job.failure()
    assert failure is not None
    assert failure.message.startswith("Stopped after step")


def _env() -> dict[str, str]:
    return {**counting({}).env, **LOOPBACK}
