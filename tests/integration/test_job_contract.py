"""What every launcher promises, tried on each: on this machine, on a Slurm cluster, on Kubernetes.

The Kubernetes cluster is a stub: `tests/support/kube_cluster.py`.
"""

import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from counting import FOR_EVER, counting, failure_of, finish, has_seen_steps, until
from kube_cluster import KubeCluster, config_for

from alignflow.errors import ConfigError, JobError
from alignflow.jobs.base import Job, Launcher
from alignflow.jobs.kubernetes.launcher import KubernetesLauncher
from alignflow.jobs.local import LocalLauncher
from alignflow.jobs.processes import kill_all, processes_of_job
from alignflow.jobs.run_folder import RunFolder
from alignflow.jobs.slurm.config import SlurmConfig
from alignflow.jobs.slurm.launcher import SlurmLauncher
from alignflow.jobs.spec import FailureKind, JobStatus
from alignflow.jobs.wait import wait_for

pytestmark = pytest.mark.integration

SUBMITTER = """
import sys, time
from pathlib import Path
from alignflow.jobs.kubernetes.config import KubernetesConfig
from alignflow.jobs.kubernetes.launcher import KubernetesLauncher
from alignflow.jobs.local import LocalLauncher
from alignflow.jobs.run_folder import RunFolder
from alignflow.jobs.slurm.config import SlurmConfig
from alignflow.jobs.slurm.launcher import SlurmLauncher
from alignflow.jobs.spec import JobSpec
launchers = {
    "local": lambda config: LocalLauncher(),
    "slurm": lambda config: SlurmLauncher(SlurmConfig()),
    "kubernetes": lambda config: KubernetesLauncher(KubernetesConfig.model_validate_json(config)),
}
launcher = launchers[sys.argv[1]](sys.argv[4])
launcher.submit(JobSpec.model_validate_json(sys.argv[2]), RunFolder(Path(sys.argv[3])))
time.sleep(99)
"""


@dataclass(frozen=True)
class Site:
    """Where jobs run."""

    name: str
    launcher: Launcher
    folder: RunFolder
    config: str = ""
    """Of the launcher, where another process needs it."""

    def start(self, config: dict[str, Any], **changes: Any) -> Job:
        """Submit a job that counts."""
        return self.launcher.submit(counting(config, **changes), self.folder)

    def start_and_see_steps(self, config: dict[str, Any], **changes: Any) -> Job:
        """Return a job of which every rank is at work."""
        job = self.start(config, **changes)
        until(lambda: has_seen_steps(self.folder, changes.get("processes_per_node", 1)))
        return job


@pytest.fixture(params=["local", "slurm", "kubernetes"])
def site(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Site]:
    monkeypatch.setenv("ALIGNFLOW_SLOTS_DIR", str(tmp_path / "slots"))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    folder = RunFolder(tmp_path / "run")
    if request.param == "local":
        yield Site("local", LocalLauncher(), folder)
    elif request.param == "kubernetes":
        kube: KubeCluster = request.getfixturevalue("kube")
        monkeypatch.setenv("KUBECONFIG", str(kube.kubeconfig))
        config = config_for(tmp_path)
        yield Site("kubernetes", KubernetesLauncher(config), folder, config.model_dump_json())
    else:
        request.getfixturevalue("cluster")
        yield Site("slurm", SlurmLauncher(SlurmConfig()), folder)
    assert not kill_all(lambda: processes_of_job(folder.path))


def test_job_is_followed_to_its_result(site: Site) -> None:
    rows: list[dict[str, Any]] = []
    told: list[JobStatus] = []
    job = site.start({"num_steps": 5})
    assert site.folder.handle.exists()
    result = wait_for(
        job,
        site.folder,
        on_metrics=rows.extend,
        on_status=lambda status, note: told.append(status),
        poll_s=0.05,
    )
    assert result.metrics == {"count": 5.0}
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    assert told[-1] is JobStatus.SUCCEEDED
    assert job.note() == ""
    assert job.failure() is None
    assert "rank 0 of 1" in site.folder.rank_log(0).read_text()
    assert not processes_of_job(site.folder.path)


def test_finished_job_is_not_run_again(site: Site) -> None:
    finish(site.start({"num_steps": 1}), site.folder)
    again = site.start({"num_steps": 1})
    assert again.attempt == 1
    assert finish(again, site.folder).metrics == {"count": 1.0}


def test_folder_of_another_job_is_refused(site: Site) -> None:
    finish(site.start({"num_steps": 1}), site.folder)
    with pytest.raises(ConfigError, match="belongs to job counting-1234, not other"):
        site.start({"num_steps": 1}, name="other")


@pytest.mark.parametrize(
    ("name", "kind", "exit_code"),
    [("error", FailureKind.ERROR, 1), ("data", FailureKind.BAD_DATA, 2)],
)
def test_exception_becomes_a_failure(
    site: Site, name: str, kind: FailureKind, exit_code: int
) -> None:
    job = site.start({"num_steps": 1, "fail": {"0": name}})
    with pytest.raises(JobError) as caught:
        finish(job, site.folder)
    assert caught.value.failure.kind is kind
    assert caught.value.exit_code == exit_code
    assert "Traceback" in caught.value.failure.log_tail
    assert job.status() is JobStatus.FAILED


def test_module_that_does_not_exist_fails_with_the_log(site: Site) -> None:
    failure = failure_of(site.start({}, module="no_such_module"), site.folder)
    assert failure.kind is FailureKind.ERROR
    assert "exited with code 1" in failure.message
    assert "No module named no_such_module" in failure.log_tail


def test_job_outlives_its_submitter_and_is_found_again(site: Site) -> None:
    spec = counting({"num_steps": 60, "step_s": 0.05})
    command = [sys.executable, "-c", SUBMITTER, site.name, spec.model_dump_json()]
    with subprocess.Popen([*command, str(site.folder.path), site.config]) as submitter:
        until(site.folder.metrics.exists)
        submitter.kill()
    job = site.launcher.find(site.folder)
    assert job is not None
    assert job.status() is JobStatus.RUNNING
    again = site.launcher.submit(spec, site.folder)
    assert (again.id, again.attempt) == (job.id, 1)
    rows: list[dict[str, Any]] = []
    wait_for(again, site.folder, on_metrics=rows.extend, poll_s=0.05)
    assert [row["step"] for row in rows] == list(range(60))


def test_submitters_at_once_start_one_job(site: Site) -> None:
    with ThreadPoolExecutor(4) as pool:
        jobs = list(pool.map(lambda _: site.start({"num_steps": 20}), range(4)))
    assert len({job.id for job in jobs}) == 1
    assert [job.attempt for job in jobs] == [1, 1, 1, 1]
    finish(jobs[0], site.folder)
    assert site.folder.launcher_log.read_text().count("=== attempt ") == 1


def test_cancelled_job_stops_at_a_step_and_goes_on_from_there(site: Site) -> None:
    job = site.start_and_see_steps(FOR_EVER)
    job.cancel()
    assert not processes_of_job(site.folder.path)
    assert job.status() is JobStatus.CANCELLED
    failure = job.failure()
    assert failure is not None
    assert failure.message.startswith("Stopped after step")

    last = int((site.folder.checkpoints / "rank-0").read_text())
    again = site.start({"num_steps": last + 4})
    assert again.attempt == 2
    finish(again, site.folder)
    rows = [row for row in site.folder.metric_reader().read_new() if row["attempt"] == "2"]
    assert [row["step"] for row in rows] == [last + 1, last + 2, last + 3]


def test_job_that_ignores_sigterm_is_killed(site: Site) -> None:
    job = site.start_and_see_steps({**FOR_EVER, "ignore_sigterm": True})
    job.cancel(grace_s=0.5)
    assert not processes_of_job(site.folder.path)
    failure = job.failure()
    assert failure is not None
    assert failure.kind is FailureKind.CANCELLED


def test_set_event_cancels_the_job(site: Site) -> None:
    job = site.start_and_see_steps(FOR_EVER)
    stop = threading.Event()
    stop.set()
    with pytest.raises(JobError) as caught:
        wait_for(job, site.folder, stop=stop)
    assert caught.value.failure.kind is FailureKind.CANCELLED


def test_killed_rank_is_told_from_an_error_and_forgotten_by_the_next_attempt(site: Site) -> None:
    job = site.start_and_see_steps(FOR_EVER)
    for process in processes_of_job(site.folder.path):
        if "counting_job" in command_line(process.pid).split("\0"):
            process.send(9)  # type: ignore[arg-type]
    failure = failure_of(job, site.folder)
    assert failure.kind is FailureKind.NODE_LOST
    assert failure.retryable
    assert "killed from outside by signal 9" in failure.message

    again = site.start(FOR_EVER)
    assert again.status() in (JobStatus.PENDING, JobStatus.RUNNING)
    assert again.failure() is None
    again.cancel(grace_s=1)


def test_first_cause_is_reported_and_not_what_it_led_to(site: Site) -> None:
    # Rank 0 loses its connection first; rank 1 says why a moment later.
    config = {
        "num_steps": 1,
        "fail": {"0": "connection", "1": "diverged"},
        "delay_s": {"1": 0.3},
    }
    failure = failure_of(site.start(config, processes_per_node=2), site.folder)
    assert failure.kind is FailureKind.DIVERGED
    assert failure.message == "DivergedError: The loss is NaN at step 2."
    assert "rank 1 of 2" in failure.log_tail
    assert "rank 0 of 2" in site.folder.rank_log(0).read_text()


def test_ranks_of_torchrun_stop_at_a_step(site: Site) -> None:
    job = site.start_and_see_steps(FOR_EVER, processes_per_node=2)
    job.cancel()
    assert not processes_of_job(site.folder.path)
    failure = job.failure()
    assert failure is not None
    assert failure.message.startswith("Stopped after step")


def test_nothing_of_the_environment_is_written_down(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2hunter2")
    finish(site.start({"num_steps": 1}), site.folder)
    files = [path for path in site.folder.path.rglob("*") if path.is_file()]
    assert not [path for path in files if b"hunter2" in path.read_bytes()]


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""
