import json
import threading
from pathlib import Path

import pytest

from alignflow.errors import DataError
from alignflow.jobs.failures import make_failure
from alignflow.jobs.run_folder import ATTEMPT_MARK, RunFolder, write_atomically
from alignflow.jobs.spec import FailureKind, JobResult, JobSpec

SPEC = JobSpec(name="sft-12ab", module="alignflow.training", config={"stage": "sft"})


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    folder.create()
    folder.begin_attempt(SPEC)
    return folder


def test_spec_comes_back(folder: RunFolder) -> None:
    assert folder.read_spec() == SPEC


def test_folder_without_a_spec_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no job\.json"):
        RunFolder(tmp_path).read_spec()


def test_unknown_field_in_a_spec_is_named(folder: RunFolder) -> None:
    (folder.path / "job.json").write_text('{"name": "sft", "module": "m", "config": {}, "gpu": 1}')
    with pytest.raises(DataError, match=r"job\.json: not a JobSpec: gpu: "):
        folder.read_spec()


def test_two_spellings_of_a_path_are_one_folder(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert RunFolder(tmp_path / "link" / "run").path == RunFolder(tmp_path / "real" / "run").path


def test_reader_takes_whole_lines_only_and_each_once(folder: RunFolder) -> None:
    reader = folder.metric_reader()
    assert reader.read_new() == []
    folder.append_metrics({"step": 1, "sft/loss": 2.5})
    with folder.metrics.open("a") as file:
        file.write('{"step": 2, "sft/')
    assert reader.read_new() == [{"step": 1, "sft/loss": 2.5}]
    assert reader.read_new() == []
    with folder.metrics.open("a") as file:
        file.write('loss": 2.0}\n')
    assert reader.read_new() == [{"step": 2, "sft/loss": 2.0}]


def test_line_that_a_killed_attempt_left_unfinished_spoils_no_other(folder: RunFolder) -> None:
    folder.append_metrics({"step": 1})
    with folder.metrics.open("a") as file:
        file.write('{"step": 2, "sft/lo')
    folder.append_metrics({"step": 2})
    assert folder.metric_reader().read_new() == [{"step": 1}, {"step": 2}]


def test_metrics_that_are_no_number_are_null(folder: RunFolder) -> None:
    folder.append_metrics({"step": 1, "loss": float("nan"), "grad_norm": float("inf")})
    row = json.loads(folder.metrics.read_text(), parse_constant=pytest.fail)
    assert row == {"step": 1, "loss": None, "grad_norm": None}


def test_first_cause_stays(folder: RunFolder) -> None:
    folder.write_failure(make_failure(FailureKind.DIVERGED, "NaN"))
    folder.write_failure(make_failure(FailureKind.OUT_OF_MEMORY, "later"))
    failure = folder.read_failure()
    assert failure is not None
    assert failure.message == "NaN"


@pytest.mark.parametrize("secondary", [FailureKind.COMMUNICATION, FailureKind.CANCELLED])
@pytest.mark.parametrize("is_cause_first", [True, False])
def test_cause_is_kept_whichever_rank_is_first(
    folder: RunFolder, secondary: FailureKind, is_cause_first: bool
) -> None:
    failures = [make_failure(FailureKind.DIVERGED, "NaN"), make_failure(secondary, "gone")]
    for failure in failures if is_cause_first else reversed(failures):
        folder.write_failure(failure)
    assert folder.read_failure() == failures[0]


def test_outcome_is_one_of_two(folder: RunFolder) -> None:
    failure = make_failure(FailureKind.ERROR, "rank 1 fell")
    folder.write_failure(failure)
    assert not folder.write_result(JobResult())
    assert (folder.read_result(), folder.read_failure()) == (None, failure)


def test_result_is_not_taken_back(folder: RunFolder) -> None:
    assert folder.write_result(JobResult(metrics={"sft/loss": 1.0}))
    folder.overrule_failure(make_failure(FailureKind.CANCELLED, "too late"))
    assert folder.read_failure() is None


def test_new_attempt_forgets_the_outcome_and_keeps_the_work(folder: RunFolder) -> None:
    folder.append_metrics({"step": 1})
    folder.beat()
    folder.request_stop(60)
    folder.write_failure(make_failure(FailureKind.NODE_LOST, "gone"))
    (folder.checkpoints / "step-00000001").mkdir()
    folder.begin_attempt(SPEC)
    assert not folder.has_outcome()
    assert folder.last_beat() is None
    assert folder.requested_stop() is None
    assert folder.metric_reader().read_new() == [{"step": 1}]
    assert (folder.checkpoints / "step-00000001").is_dir()


def test_tail_is_of_the_newest_attempt(folder: RunFolder) -> None:
    log = folder.rank_log(0)
    assert folder.log_tail(log) == ""
    log.write_text("an import warning\n")
    assert folder.log_tail(log) == "an import warning"
    lines = "\n".join(f"line {i}" for i in range(30))
    log.write_text(f"{ATTEMPT_MARK}1\nold\n{ATTEMPT_MARK}2\n{lines}\n")
    assert folder.log_tail(log).splitlines() == [f"line {i}" for i in range(10, 30)]
    log.write_text(f"{ATTEMPT_MARK}1\nold\n{ATTEMPT_MARK}2\n")
    assert folder.log_tail(log) == ""


def test_readers_see_old_or_new_and_nothing_between(tmp_path: Path) -> None:
    path = tmp_path / "file"
    texts = ["a" * 100_000, "b" * 100_000]
    write_atomically(path, texts[0])
    done = threading.Event()

    def write() -> None:
        for number in range(50):
            write_atomically(path, texts[number % 2])
        done.set()

    thread = threading.Thread(target=write)
    thread.start()
    while not done.is_set():
        assert path.read_text() in texts
    thread.join()
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
