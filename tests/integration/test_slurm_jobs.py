"""What only a cluster does: several nodes, limits, preemption, lost nodes, a controller away."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from counting import FOR_EVER, counting, failure_of, finish, has_seen_steps, until
from slurm_cluster import Cluster

from alignflow.data_validation.canonical import SCHEMAS
from alignflow.errors import ConfigError, JobError
from alignflow.jobs.local import LocalLauncher
from alignflow.jobs.processes import kill_all, processes_of_job
from alignflow.jobs.run_folder import RunFolder
from alignflow.jobs.slurm.config import SlurmConfig
from alignflow.jobs.slurm.handle import SlurmHandle
from alignflow.jobs.slurm.launcher import SlurmJob, SlurmLauncher
from alignflow.jobs.spec import FailureKind, JobSpec, JobStatus

pytestmark = pytest.mark.integration

# Both nodes are this machine.
LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo"}


@pytest.fixture
def folder(tmp_path: Path, cluster: Cluster) -> Iterator[RunFolder]:
    folder = RunFolder(tmp_path / "run")
    yield folder
    job = SlurmLauncher(SlurmConfig()).find(folder)
    if job is not None:
        job.cancel(grace_s=0)
    assert not kill_all(lambda: processes_of_job(folder.path))


def start(
    folder: RunFolder, config: dict[str, Any], slurm: SlurmConfig | None = None, **changes: Any
) -> SlurmJob:
    return SlurmLauncher(slurm or SlurmConfig()).submit(counting(config, **changes), folder)


def slurm_id(job: SlurmJob) -> str:
    return job.id.removeprefix("slurm:")


def rows_of(folder: RunFolder) -> list[dict[str, Any]]:
    return folder.metric_reader().read_new()


def assert_resumed_once(folder: RunFolder, num_steps: int) -> None:
    """Each step was counted once but for the one that a kill may have left unsaved."""
    rows = rows_of(folder)
    first = [row["step"] for row in rows if row["attempt"] == "1"]
    second = [row["step"] for row in rows if row["attempt"] == "2"]
    assert first == list(range(len(first)))
    assert second == list(range(second[0], num_steps))
    assert second[0] in (len(first) - 1, len(first))


def test_ranks_are_spread_over_nodes_and_see_their_gpus(folder: RunFolder) -> None:
    job = start(
        folder, {"num_steps": 3}, nodes=2, processes_per_node=2, gpus_per_node=2,
    )  # fmt: skip
    result = finish(job, folder)
    assert result.details["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert sorted(path.name for path in folder.checkpoints.iterdir()) == [
        f"rank-{rank}" for rank in range(4)
    ]
    log = folder.launcher_log.read_text()
    assert "--node-rank=0" in log
    assert "--node-rank=1" in log


def test_what_slurm_refuses_is_bad_input(folder: RunFolder) -> None:
    with pytest.raises(ConfigError, match=r"Slurm refuses the job: .*partition"):
        start(folder, {"num_steps": 1}, SlurmConfig(partition="no-such"))
    assert SlurmLauncher(SlurmConfig()).find(folder) is None


def test_job_of_a_submitter_that_died_before_it_wrote_the_id_is_found_by_name(
    folder: RunFolder,
) -> None:
    config = SlurmConfig(options=["--begin=now+4"])
    first = start(folder, {"num_steps": 3}, config).id
    folder.handle.unlink()
    again = start(folder, {"num_steps": 3}, config)
    assert again.id == first
    assert again.status() is JobStatus.PENDING
    assert again.note().endswith("waits: BeginTime")
    finish(again, folder)


def test_waiting_job_is_cancelled(folder: RunFolder) -> None:
    job = start(folder, FOR_EVER, SlurmConfig(options=["--begin=now+600"]))
    job.cancel()
    assert job.status() is JobStatus.CANCELLED
    assert not folder.metrics.exists()


def test_job_that_somebody_else_cancels_is_cancelled(folder: RunFolder, cluster: Cluster) -> None:
    job = start(folder, FOR_EVER)
    until(lambda: has_seen_steps(folder))
    cluster.run("scancel", slurm_id(job))
    assert failure_of(job, folder).kind is FailureKind.CANCELLED
    assert not processes_of_job(folder.path)


def test_job_near_its_limit_saves_and_goes_on_by_itself(folder: RunFolder) -> None:
    config = SlurmConfig(stop_before_limit_s=50)  # of a minute, the shortest limit
    # Slurm looks at limits twice a minute: the first attempt would last longer than the limit.
    steps = {"num_steps": 1200, "step_s": 0.05, "resumed_step_s": 0.001}
    job = start(folder, steps, config, time_limit_s=60)
    name = job.id
    finish(job, folder)
    assert (job.id, job.attempt) == (name, 2)
    assert_resumed_once(folder, 1200)


@pytest.mark.slow
def test_job_that_does_not_requeue_fails_at_its_limit(folder: RunFolder) -> None:
    config = SlurmConfig(stop_before_limit_s=30, requeue=False)
    failure = failure_of(start(folder, FOR_EVER, config, time_limit_s=60), folder)
    assert failure.kind is FailureKind.TIME_LIMIT
    assert failure.retryable


@pytest.mark.slow
def test_preempted_job_gives_way_and_goes_on_from_its_checkpoint(
    folder: RunFolder, cluster: Cluster, tmp_path: Path
) -> None:
    whole = SlurmConfig(options=["--exclusive"])
    job = start(folder, {"num_steps": 150, "step_s": 0.05}, whole, nodes=2)
    until(lambda: has_seen_steps(folder, 2))
    other = RunFolder(tmp_path / "urgent")
    urgent = SlurmConfig(partition="urgent", options=["--exclusive"])
    finish(start(other, {"num_steps": 1}, urgent), other)
    finish(job, folder)
    assert job.attempt == 2
    assert_resumed_once(folder, 150)


def test_job_of_a_lost_node_goes_on_elsewhere(folder: RunFolder, cluster: Cluster) -> None:
    job = start(folder, {"num_steps": 100, "step_s": 0.05})
    until(lambda: has_seen_steps(folder))
    node = cluster.run("squeue", "-h", "-j", slurm_id(job), "-o", "%N").strip()
    cluster.crash(node)
    # What the cluster's health check says after a while.
    cluster.run("scontrol", "update", f"nodename={node}", "state=down", "reason=power cut")
    try:
        finish(job, folder)
    finally:
        cluster.start(node)
        cluster.wait_for_nodes()
    assert job.attempt == 2
    assert_resumed_once(folder, 100)


def test_processes_of_a_node_that_was_taken_for_lost_give_way(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.create()
    folder.begin_attempt(counting(FOR_EVER))
    handle = SlurmHandle(job_id=1, first_attempt=1, attempt=1)
    handle.write(folder)
    monkeypatch.setenv("SLURM_NODEID", "0")
    monkeypatch.setenv("SLURMD_NODENAME", "n1")
    command = [sys.executable, "-m", "alignflow.jobs.slurm.node", str(folder.path), "1", "n1", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as agent:
        until(lambda: has_seen_steps(folder))
        handle.replaced(attempt=2).write(folder)
        said, _ = agent.communicate(timeout=30)
    assert "attempt 1 on n1 gives way to a later one" in said
    assert not processes_of_job(folder.path)
    assert not folder.has_outcome()


def test_absence_of_the_controller_says_nothing_about_the_job(
    folder: RunFolder, cluster: Cluster, tmp_path: Path
) -> None:
    job = start(folder, FOR_EVER)
    until(lambda: has_seen_steps(folder))
    cluster.kill("slurmctld")
    try:
        until(lambda: job.note() == "Slurm's controller doesn't answer", within_s=90)
        assert job.status() is JobStatus.RUNNING
        with pytest.raises(JobError, match="controller doesn't answer") as caught:
            start(RunFolder(tmp_path / "other"), {"num_steps": 1})
        assert caught.value.failure.retryable
    finally:
        cluster.start("slurmctld")
        cluster.wait_for_controller()
    until(lambda: job.note().startswith("running as attempt 1"), within_s=90)
    job.cancel()
    assert job.status() is JobStatus.CANCELLED


@pytest.mark.slow
def test_job_whose_agent_is_killed_goes_on_from_its_checkpoint(folder: RunFolder) -> None:
    job = start(folder, {"num_steps": 100, "step_s": 0.05}, nodes=2)
    until(lambda: has_seen_steps(folder, 2))
    torchrun = next(
        process
        for process in processes_of_job(folder.path)
        if b"alignflow.jobs.slurm.node" in Path(f"/proc/{process.parent}/cmdline").read_bytes()
    )
    os.kill(torchrun.parent, signal.SIGKILL)
    finish(job, folder)
    assert job.attempt == 2
    assert_resumed_once(folder, 100)


def test_training_over_two_nodes_is_that_of_two_processes_on_one(
    tmp_path: Path, folder: RunFolder, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALIGNFLOW_SLOTS_DIR", str(tmp_path / "slots"))
    stage = {
        "stage": "sft",
        "precision": "fp32",
        "learning_rate": 1e-3,
        "global_batch_size": 4,
        "microbatch_tokens": 128,
        "num_epochs": 2,
        "parallel": {"data_parallel_size": 2},
    }
    dataset = write_demonstrations(tmp_path / "data")
    config = {"stage": stage, "model": str(tiny_model), "dataset": str(dataset)}
    # With other numbers of threads some processors add in another order.
    env = LOOPBACK | {"OMP_NUM_THREADS": "1"}
    spec = JobSpec(name="sft-1", module="alignflow.training", config=config, env=env)
    here = RunFolder(tmp_path / "here")
    local = LocalLauncher().submit(spec.replaced(processes_per_node=2), here)
    spread = SlurmLauncher(SlurmConfig()).submit(spec.replaced(nodes=2), folder)
    assert finish(spread, folder).metrics == finish(local, here).metrics
    assert losses(folder) == losses(here)


def write_demonstrations(folder: Path) -> Path:
    for split, num_rows in (("train", 16), ("held_out", 4)):
        (folder / split).mkdir(parents=True)
        rows = [
            {
                "id": f"{split}-{number}",
                "messages": [
                    {"role": "user", "content": f"red {number}"},
                    {"role": "assistant", "content": "blue " * (number % 5 + 1)},
                ],
            }
            for number in range(num_rows)
        ]
        table = pa.Table.from_pylist(rows, schema=SCHEMAS["sft"])
        pq.write_table(table, folder / split / "part-00000.parquet")
    (folder / "card.json").write_text("{}")
    return folder


def losses(folder: RunFolder) -> list[float]:
    return [row["sft/loss"] for row in rows_of(folder) if row["phase"] == "train"]
