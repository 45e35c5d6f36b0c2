"""`alignflow jobs` on jobs of this machine and of a cluster."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from counting import FOR_EVER, counting, finish, has_seen_steps, until
from kube_cluster import KubeCluster, config_for
from slurm_cluster import Cluster
from typer.testing import CliRunner

from alignflow.cli.app import app
from alignflow.jobs.kubernetes.launcher import KubernetesLauncher
from alignflow.jobs.local import LocalLauncher
from alignflow.jobs.processes import kill_all, processes_of_job
from alignflow.jobs.run_folder import RunFolder
from alignflow.jobs.slurm.config import SlurmConfig
from alignflow.jobs.slurm.launcher import SlurmLauncher

pytestmark = pytest.mark.integration


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("ALIGNFLOW_SLOTS_DIR", str(tmp_path / "slots"))
    yield tmp_path
    for folder in tmp_path.glob("jobs/*"):
        assert not kill_all(lambda at=folder: processes_of_job(at))  # type: ignore[misc]


def jobs(workspace: Path, *arguments: str, exit_code: int = 0) -> str:
    result = CliRunner().invoke(app, ["jobs", *arguments, "--workspace", str(workspace)])
    assert result.exit_code == exit_code, result.output
    return result.output


def test_jobs_of_every_launcher_are_listed_read_and_cancelled(
    workspace: Path, cluster: Cluster, kube: KubeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(kube.kubeconfig))
    assert jobs(workspace, "ls") == "no job waits or runs\n"
    folders = {
        name: RunFolder(workspace / "jobs" / f"{name}-1") for name in ("here", "there", "pods")
    }
    LocalLauncher().submit(counting(FOR_EVER), folders["here"])
    SlurmLauncher(SlurmConfig()).submit(counting(FOR_EVER), folders["there"])
    KubernetesLauncher(config_for(workspace)).submit(counting(FOR_EVER), folders["pods"])
    for folder in folders.values():
        until(lambda at=folder: has_seen_steps(at))  # type: ignore[misc]
    listed = json.loads(jobs(workspace, "ls", "--format", "json"))
    assert {row["job"]: row["status"] for row in listed} == {
        "here-1": "running",
        "there-1": "running",
        "pods-1": "running",
    }
    assert "there-1" in jobs(workspace, "ls")
    assert "rank 0 | rank 0 of 1" in jobs(workspace, "logs", "there")
    for name in folders:
        assert jobs(workspace, "cancel", name) == f"{name}-1: cancelled\n"
    assert jobs(workspace, "cancel", "here") == "here-1 has ended: cancelled\n"
    assert jobs(workspace, "ls") == "no job waits or runs\n"
    ended = json.loads(jobs(workspace, "ls", "--all", "--format", "json"))
    assert all(row["note"].startswith("Stopped after step") for row in ended)


def test_logs_are_followed_to_the_end_of_the_job(workspace: Path) -> None:
    folder = RunFolder(workspace / "jobs" / "count-1")
    job = LocalLauncher().submit(counting({"num_steps": 30, "fail": {"0": "error"}}), folder)
    printed = jobs(workspace, "logs", "-f", "count")
    assert "rank 0 | ValueError: the cat sat on the keyboard" in printed
    assert "launcher | " in printed
    assert job.failure() is not None


def test_job_that_is_not_there_is_named_with_those_that_are(workspace: Path) -> None:
    folder = RunFolder(workspace / "jobs" / "count-1")
    finish(LocalLauncher().submit(counting({"num_steps": 1}), folder), folder)
    jobs(workspace, "logs", "coutn", exit_code=2)
    jobs(workspace, "logs", "count", "--rank", "7", exit_code=2)
