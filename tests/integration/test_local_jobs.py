import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from counting import FOR_EVER, counting, failure_of, finish, has_seen_steps, until

from alignflow.errors import JobError
from alignflow.jobs.local import Handle, LocalJob, LocalLauncher
from alignflow.jobs.processes import descendants, kill_all, processes_of_job
from alignflow.jobs.run_folder import RunFolder
from alignflow.jobs.spec import FailureKind, JobStatus
from alignflow.jobs.wait import cancel_on_exit, wait_for

pytestmark = pytest.mark.integration


@pytest.fixture
def folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str], RunFolder]]:
    """Makes run folders; whatever still runs in them at the end is killed."""
    monkeypatch.setenv("ALIGNFLOW_SLOTS_DIR", str(tmp_path / "slots"))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    made: list[RunFolder] = []

    def make(name: str) -> RunFolder:
        made.append(RunFolder(tmp_path / name))
        return made[-1]

    yield make
    for folder in made:
        assert not kill_all(lambda at=folder.path: processes_of_job(at))  # type: ignore[misc]


@pytest.fixture
def folder(folders: Callable[[str], RunFolder]) -> RunFolder:
    return folders("run")


def start(folder: RunFolder, config: dict[str, Any], **changes: Any) -> LocalJob:
    return LocalLauncher().submit(counting(config, **changes), folder)


def start_and_see_steps(folder: RunFolder, config: dict[str, Any], **changes: Any) -> LocalJob:
    """Return a job of which every rank is at work."""
    job = start(folder, config, **changes)
    num_ranks = changes.get("processes_per_node", 1)
    until(lambda: has_seen_steps(folder, num_ranks))
    return job


def is_all_gone(folder: RunFolder) -> bool:
    return not processes_of_job(folder.path)


def supervisor_pid(folder: RunFolder) -> int:
    handle = Handle.read(folder)
    assert handle is not None
    return handle.pid


def environment_text(pid: int) -> str:
    return "\0" + Path(f"/proc/{pid}/environ").read_text()


def test_job_outlives_the_folder_that_it_was_started_from(
    folder: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As a worker of Prefect leaves it: its flow's folder goes with it, and the job stays.
    passing = tmp_path / "passing"
    passing.mkdir()
    monkeypatch.chdir(passing)
    monkeypatch.setenv("PYTHONPATH", f"beside{os.pathsep}{os.environ.get('PYTHONPATH', '/')}")
    job = start_and_see_steps(folder, FOR_EVER)
    assert Path(f"/proc/{supervisor_pid(folder)}/cwd").readlink() == folder.path
    assert f"\0PYTHONPATH={passing}/beside:/" in environment_text(supervisor_pid(folder))
    passing.rmdir()
    [rank] = descendants(supervisor_pid(folder))
    assert Path(f"/proc/{rank.pid}/cwd").readlink() == folder.path
    job.cancel()


def test_job_is_followed_to_its_result(folder: RunFolder) -> None:
    rows: list[dict[str, Any]] = []
    told: list[tuple[JobStatus, str]] = []
    job = start(folder, {"num_steps": 5})
    assert folder.handle.exists()
    result = wait_for(
        job, folder, on_metrics=rows.extend, on_status=lambda *at: told.append(at), poll_s=0.05
    )
    assert result.metrics == {"count": 5.0}
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    assert told[-1] == (JobStatus.SUCCEEDED, "")
    assert told[-2] == (JobStatus.RUNNING, "running as attempt 1 on cpu-0")
    assert "rank 0 of 1" in folder.rank_log(0).read_text()
    cores = len(os.sched_getaffinity(0))
    assert result.details.pop("peak_memory_bytes") > 2**20
    assert result.details == {
        "OMP_NUM_THREADS": str(cores),
        "GOMP_SPINCOUNT": "5000",
        "CUDA_VISIBLE_DEVICES": "",
    }
    assert is_all_gone(folder)


SUBMITTER = """
import sys, time
from pathlib import Path
from alignflow.jobs.local import LocalLauncher
from alignflow.jobs.run_folder import RunFolder
from alignflow.jobs.spec import JobSpec
LocalLauncher().submit(JobSpec.model_validate_json(sys.argv[1]), RunFolder(Path(sys.argv[2])))
time.sleep(99)
"""


def test_job_outlives_its_submitter_and_is_found_again(folder: RunFolder) -> None:
    spec = counting({"num_steps": 40, "step_s": 0.05})
    command = [sys.executable, "-c", SUBMITTER, spec.model_dump_json(), str(folder.path)]
    with subprocess.Popen(command, start_new_session=True) as submitter:
        until(folder.metrics.exists)
        os.killpg(submitter.pid, signal.SIGINT)  # Ctrl-C in its terminal
        os.killpg(submitter.pid, signal.SIGKILL)
    job = LocalLauncher().find(folder)
    assert job is not None
    assert job.status() is JobStatus.RUNNING
    again = LocalLauncher().submit(spec, folder)
    assert (again.id, again.attempt) == (job.id, 1)
    rows: list[dict[str, Any]] = []
    wait_for(again, folder, on_metrics=rows.extend, poll_s=0.05)
    assert [row["step"] for row in rows] == list(range(40))


def test_submitter_killed_while_it_submits_leaves_one_job(folder: RunFolder) -> None:
    spec = counting(FOR_EVER)
    command = [sys.executable, "-c", SUBMITTER, spec.model_dump_json(), str(folder.path)]
    with subprocess.Popen(command) as submitter:
        until(lambda: bool(processes_of_job(folder.path)))  # the supervisor, before its handle
        submitter.kill()
    job = LocalLauncher().submit(spec, folder)
    assert job.attempt == 1
    until(folder.metrics.exists)
    assert len(processes_of_job(folder.path)) == 2


def test_ctrl_c_while_it_submits_leaves_nothing(folder: RunFolder, tmp_path: Path) -> None:
    # The supervisor's Python is slow to start, so that Ctrl-C comes before the handle is written.
    (tmp_path / "sitecustomize.py").write_text("import time; time.sleep(60)")
    code = f"import os; os.environ['PYTHONPATH'] = {str(tmp_path)!r}\n{SUBMITTER}"
    command = [sys.executable, "-c", code, counting(FOR_EVER).model_dump_json(), str(folder.path)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as submitter:
        until(lambda: bool(processes_of_job(folder.path)))
        submitter.send_signal(signal.SIGINT)
    assert is_all_gone(folder)
    assert not folder.handle.exists()


def test_job_that_ignores_sigterm_is_killed_with_its_helpers(folder: RunFolder) -> None:
    job = start_and_see_steps(folder, {**FOR_EVER, "ignore_sigterm": True})
    assert len(processes_of_job(folder.path)) == 3  # supervisor, rank, helper
    began = time.monotonic()
    job.cancel(grace_s=0.5)
    assert time.monotonic() - began < 15
    assert is_all_gone(folder)
    failure = job.failure()
    assert failure is not None
    assert failure.kind is FailureKind.CANCELLED


def test_supervisor_that_hangs_does_not_stop_cancelling(folder: RunFolder) -> None:
    job = start_and_see_steps(folder, FOR_EVER)
    os.kill(supervisor_pid(folder), signal.SIGSTOP)
    job.cancel(grace_s=0)
    assert is_all_gone(folder)
    assert job.status() is JobStatus.CANCELLED


def test_block_left_by_ctrl_c_cancels_and_by_an_error_does_not(folder: RunFolder) -> None:
    job = start_and_see_steps(folder, FOR_EVER)
    with pytest.raises(RuntimeError), cancel_on_exit(job):
        raise RuntimeError("the tracking server is down")
    assert job.status() is JobStatus.RUNNING
    with pytest.raises(KeyboardInterrupt), cancel_on_exit(job):
        raise KeyboardInterrupt
    assert job.status() is JobStatus.CANCELLED


def test_killed_supervisor_takes_the_job_with_it_and_the_next_attempt_resumes(
    folder: RunFolder,
) -> None:
    job = start_and_see_steps(folder, FOR_EVER)
    os.kill(supervisor_pid(folder), signal.SIGKILL)
    until(lambda: is_all_gone(folder), within_s=10)
    failure = failure_of(job, folder)
    assert failure.kind is FailureKind.NODE_LOST
    assert failure.retryable

    last = int((folder.checkpoints / "rank-0").read_text())
    again = start(folder, {"num_steps": last + 4})
    assert again.attempt == 2
    finish(again, folder)
    rows = [row for row in folder.metric_reader().read_new() if row["attempt"] == "2"]
    assert [row["step"] for row in rows] == [last + 1, last + 2, last + 3]


def test_killed_worker_is_told_from_an_error_and_forgotten_by_the_next_attempt(
    folder: RunFolder,
) -> None:
    job = start_and_see_steps(folder, FOR_EVER)
    for worker in descendants(supervisor_pid(folder)):
        worker.send(signal.SIGKILL)
    failure = failure_of(job, folder)
    assert failure.kind is FailureKind.NODE_LOST
    assert "killed from outside by signal 9" in failure.message

    again = start(folder, FOR_EVER)
    assert again.status() in (JobStatus.PENDING, JobStatus.RUNNING)
    assert again.failure() is None
    assert folder.read_failure() is None


def test_time_limit_ends_the_job(folder: RunFolder) -> None:
    failure = failure_of(start(folder, FOR_EVER, time_limit_s=1), folder)
    assert failure.kind is FailureKind.TIME_LIMIT
    assert failure.retryable
    assert is_all_gone(folder)


def test_jobs_queue_for_the_slot(folders: Callable[[str], RunFolder]) -> None:
    first, second, third = folders("first"), folders("second"), folders("third")
    running = start_and_see_steps(first, FOR_EVER)
    waiting, cancelled = start(second, {"num_steps": 2}), start(third, {"num_steps": 2})
    until(lambda: waiting.note() != "" and cancelled.note() != "")
    assert waiting.status() is JobStatus.PENDING
    held_by = f"counting-1234 (pid {supervisor_pid(first)})"
    assert waiting.note() == f"waiting for a free cpu slot, held by {held_by}"
    assert waiting.note() in second.launcher_log.read_text()

    cancelled.cancel()
    assert cancelled.status() is JobStatus.CANCELLED
    told: list[JobStatus] = []

    def on_status(status: JobStatus, note: str) -> None:
        told.append(status)
        if status is JobStatus.PENDING:
            running.cancel()

    wait_for(waiting, second, on_status=on_status, poll_s=0.02)
    assert told[0] is JobStatus.PENDING
    assert told[-1] is JobStatus.SUCCEEDED
    assert not third.metrics.exists()


def test_job_without_a_sign_of_life_is_lost(folder: RunFolder) -> None:
    job = start_and_see_steps(folder, FOR_EVER)
    for worker in descendants(supervisor_pid(folder)):
        worker.send(signal.SIGSTOP)
    # Its last sign was given by a clock that was ahead.
    os.utime(folder.path / "heartbeat", (time.time() + 7200,) * 2)
    with pytest.raises(JobError) as caught:
        wait_for(job, folder, poll_s=0.1, heartbeat_timeout_s=1.5)
    assert caught.value.failure.kind is FailureKind.NODE_LOST
    assert is_all_gone(folder)
    assert job.status() is JobStatus.FAILED


def test_a_clock_that_is_set_makes_no_job_a_lost_one(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = start_and_see_steps(folder, {"num_steps": 60})
    now = time.time

    def set_clock(rows: list[dict[str, Any]]) -> None:
        monkeypatch.setattr(time, "time", lambda: now() + 7200)

    result = wait_for(job, folder, on_metrics=set_clock, poll_s=0.05)
    assert result.metrics == {"count": 60.0}


def test_killed_rank_is_named_and_no_rank_outlives_torchrun(folder: RunFolder) -> None:
    job = start_and_see_steps(folder, FOR_EVER, processes_per_node=2)
    ranks = descendants(descendants(supervisor_pid(folder))[0].pid)
    victim = next(rank for rank in ranks if "\0RANK=1\0" in environment_text(rank.pid))
    victim.send(signal.SIGKILL)
    failure = failure_of(job, folder)
    assert failure.kind is FailureKind.NODE_LOST
    assert failure.message == "Rank 1 of counting_job was killed from outside by signal 9."

    again = start(folder, {**FOR_EVER, "ignore_sigterm": True}, processes_per_node=2)
    until(lambda: len(descendants(supervisor_pid(folder))) == 5)  # torchrun, ranks, helpers
    descendants(supervisor_pid(folder))[0].send(signal.SIGKILL)
    assert failure_of(again, folder).kind is FailureKind.NODE_LOST
    assert is_all_gone(folder)
