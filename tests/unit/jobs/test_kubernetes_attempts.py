"""Which attempt a pod takes part in, when pods come, go and are replaced one by one."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from alignflow.jobs.failures import make_failure
from alignflow.jobs.kubernetes import attempts
from alignflow.jobs.kubernetes.attempts import Member, join
from alignflow.jobs.kubernetes.handle import KubernetesHandle
from alignflow.jobs.run_folder import RunFolder
from alignflow.jobs.spec import FailureKind, JobResult, JobSpec

SPEC = JobSpec(name="sft", module="alignflow.training", config={}, nodes=2)


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "_FENCE_S", 0.0)
    monkeypatch.setattr(attempts, "_LOOK_EVERY_S", 0.01)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path)
    folder.create()
    folder.begin_attempt(SPEC)
    return folder


def handle(name: str = "sft-1", attempt: int = 1) -> KubernetesHandle:
    return KubernetesHandle(
        template="job",
        context=None,
        namespace="training",
        name=name,
        first_attempt=attempt,
        attempt=attempt,
    )


def enter(
    folder: RunFolder, index: int, *, may_restart: bool = True, looks: int | None = None
) -> int | None:
    """Have a pod of the first job join; after so many looks it is told to end."""
    told = iter(range(looks)) if looks is not None else None
    return join(
        folder,
        SPEC,
        handle(),
        Member("sft-1", 1, index, f"pod-{index}", may_restart),
        is_told=lambda: told is not None and next(told, None) is None,
    )


def fail(folder: RunFolder, kind: FailureKind) -> None:
    folder.write_failure(make_failure(kind, "It ended."))


def test_pods_join_the_attempt_that_the_first_begins(folder: RunFolder) -> None:
    with ThreadPoolExecutor(1) as other:
        follower = other.submit(enter, folder, 1)
        assert enter(folder, 0) == 1
        assert follower.result(timeout=30) == 1
    written = KubernetesHandle.read(folder)  # the launcher died before it could
    assert written == handle()


def test_next_attempt_begins_with_the_first_pod_alone(folder: RunFolder) -> None:
    assert (enter(folder, 0), enter(folder, 1)) == (1, 1)
    fail(folder, FailureKind.PREEMPTED)
    assert enter(folder, 1, looks=3) is None  # it waits
    assert enter(folder, 0) == 2
    assert folder.read_failure() is None
    assert enter(folder, 1) == 2


def test_pod_that_replaces_another_has_all_begin_anew(folder: RunFolder) -> None:
    assert (enter(folder, 0), enter(folder, 1)) == (1, 1)
    assert enter(folder, 1, looks=3) is None
    stop = folder.requested_stop()
    assert stop is not None
    assert stop.kind is FailureKind.NODE_LOST
    fail(folder, FailureKind.NODE_LOST)
    assert enter(folder, 0) == 2
    assert folder.requested_stop() is None


@pytest.mark.parametrize("kind", [FailureKind.DIVERGED, FailureKind.BAD_DATA, FailureKind.ERROR])
def test_failure_that_would_come_again_stays(folder: RunFolder, kind: FailureKind) -> None:
    assert enter(folder, 0) == 1
    fail(folder, kind)
    assert enter(folder, 0) is None
    failure = folder.read_failure()
    assert failure is not None
    assert failure.kind is kind


def test_cancelled_job_does_not_begin_anew(folder: RunFolder) -> None:
    assert enter(folder, 0) == 1
    folder.request_stop(10.0)
    assert enter(folder, 0) is None


def test_job_that_may_not_go_on_does_not_begin_anew(folder: RunFolder) -> None:
    assert enter(folder, 0, may_restart=False) == 1
    assert enter(folder, 0, may_restart=False) is None


def test_pod_of_a_job_that_was_followed_by_another_gives_way(
    folder: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    handle("sft-2", attempt=2).write(folder)
    assert enter(folder, 0) is None
    assert "sft-1 gives way to sft-2" in capsys.readouterr().out


def test_pod_that_comes_after_the_end_has_nothing_to_do(folder: RunFolder) -> None:
    assert enter(folder, 0) == 1
    folder.write_result(JobResult())
    assert (enter(folder, 0), enter(folder, 1)) == (None, None)
