import os
import subprocess
import sys
from pathlib import Path

import pytest

from alignflow.errors import ConfigError
from alignflow.jobs.attempt import job_command
from alignflow.jobs.local import Handle, LocalLauncher
from alignflow.jobs.run_folder import RunFolder
from alignflow.jobs.slots import Slot
from alignflow.jobs.spec import JobSpec, JobStatus
from alignflow.jobs.supervisor import job_environment

SPEC = JobSpec(name="sft-12ab", module="alignflow.training", config={})


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    folder.create()
    return folder


@pytest.fixture
def handle() -> Handle:
    return Handle.of_this_process(attempt=2)


def test_more_nodes_than_this_machine_are_refused(folder: RunFolder) -> None:
    with pytest.raises(ConfigError, match="asks for 2 nodes"):
        LocalLauncher().submit(SPEC.replaced(nodes=2), folder)


def test_more_gpus_than_are_visible_are_refused(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(ConfigError, match="asks for 2 GPUs, and this machine shows 1"):
        LocalLauncher().submit(SPEC.replaced(gpus_per_node=2), folder)


def test_run_folder_that_is_a_file_is_refused_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(ConfigError, match=r"the run folder can't be written \(Not a directory\)"):
        LocalLauncher().submit(SPEC, RunFolder(tmp_path / "run"))


def test_folder_that_nothing_was_submitted_with_has_no_job(folder: RunFolder) -> None:
    assert LocalLauncher().find(folder) is None


def test_handle_of_another_launcher_is_refused(folder: RunFolder) -> None:
    folder.handle.write_text('{"launcher": "slurm", "job": 17}')
    job = LocalLauncher().find(folder)
    assert job is not None
    with pytest.raises(ConfigError, match="another launcher started this job"):
        job.status()


def test_liveness_is_pid_and_start_and_boot(folder: RunFolder, handle: Handle) -> None:
    assert handle.is_alive(folder)
    assert not handle.replaced(start_ticks=handle.start_ticks - 1).is_alive(folder)
    folder.beat()
    assert not handle.replaced(boot_id="another boot").is_alive(folder)


def test_job_in_another_container_lives_by_its_heartbeat(folder: RunFolder, handle: Handle) -> None:
    elsewhere = handle.replaced(host="other", pid_namespace="pid:[1]", is_pending=False)
    elsewhere.write(folder)
    job = LocalLauncher().find(folder)
    assert job is not None
    assert job.status() is JobStatus.FAILED
    folder.beat()
    assert job.status() is JobStatus.RUNNING
    with pytest.raises(ConfigError, match="runs on other; cancel it there"):
        job.cancel()


def test_one_process_needs_no_torchrun(folder: RunFolder) -> None:
    assert job_command(SPEC, folder) == [
        sys.executable, "-m", "alignflow.training", str(folder.path),
    ]  # fmt: skip
    assert job_command(SPEC.replaced(processes_per_node=4), folder) == [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=4",
        "--max-restarts=0", "-m", "alignflow.training", str(folder.path),
    ]  # fmt: skip


def test_cpu_job_shares_the_cores_and_sees_no_gpu(
    folder: RunFolder, handle: Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("ALIGNFLOW_CPU_SLOTS", "2")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
    held = [Slot("cpu", "cpu-0")]
    spec = SPEC.replaced(processes_per_node=4)
    environment = job_environment(spec, folder, handle, held)
    assert environment["OMP_NUM_THREADS"] == "2"  # 16 cores / (4 processes * 2 slots)
    assert environment["CUDA_VISIBLE_DEVICES"] == ""
    assert "RANK" not in environment
    many = job_environment(SPEC.replaced(processes_per_node=64), folder, handle, held)
    assert many["OMP_NUM_THREADS"] == "1"
    own = job_environment(SPEC.replaced(env={"OMP_NUM_THREADS": "3"}), folder, handle, held)
    assert own["OMP_NUM_THREADS"] == "3"


def test_gpu_job_sees_the_gpus_it_holds(folder: RunFolder, handle: Handle) -> None:
    held = [Slot("gpu", "gpu-a", "2"), Slot("gpu", "gpu-b", "5")]
    environment = job_environment(SPEC.replaced(gpus_per_node=2), folder, handle, held)
    assert environment["CUDA_VISIBLE_DEVICES"] == "2,5"


def test_rendezvous_of_one_process_works_as_its_environment_says(
    folder: RunFolder, handle: Handle
) -> None:
    code = "import torch.distributed as d; d.init_process_group('gloo'); print(d.get_world_size())"
    environment = job_environment(SPEC, folder, handle, [Slot("cpu", "cpu-0")])
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


def test_nothing_of_the_environment_is_written_down(
    folder: RunFolder, handle: Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2hunter2")
    folder.begin_attempt(SPEC)
    handle.write(folder)
    written = "".join(path.read_text() for path in folder.path.glob("*.json"))
    assert "hunter2" not in written
