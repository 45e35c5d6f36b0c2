import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from alignflow.errors import DataError
from alignflow.jobs.run_folder import RunFolder
from alignflow.jobs.spec import FailureKind, JobResult, JobSpec
from alignflow.jobs.worker import (
    JobStoppedError,
    raise_if_stop_requested,
    run_job,
    stop_requested,
)

SPEC = JobSpec(name="sft-12ab", module="alignflow.training", config={"rows": 3})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    folder.create()
    folder.begin_attempt(SPEC)
    monkeypatch.setattr(sys, "argv", ["module", str(folder.path)])
    monkeypatch.delenv("RANK", raising=False)
    return folder


def test_result_is_written_and_the_heart_has_beaten(folder: RunFolder) -> None:
    def main(given: RunFolder, spec: JobSpec) -> JobResult:
        assert given.path == folder.path
        return JobResult(metrics={"rows": float(spec.config["rows"])})

    with pytest.raises(SystemExit) as left:
        run_job(main)
    assert left.value.code == 0
    result = folder.read_result()
    assert result is not None
    assert result.metrics == {"rows": 3.0}
    assert result.details["peak_memory_bytes"] > 10**6
    assert folder.last_beat() is not None
    assert "heartbeat" not in {thread.name for thread in threading.enumerate()}


def test_only_rank_0_writes_the_result_and_beats(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit) as left:
        run_job(lambda folder, spec: None)
    assert left.value.code == 0
    assert not folder.has_outcome()
    assert folder.last_beat() is None


def test_bad_input_ends_with_exit_code_2(
    folder: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(folder: RunFolder, spec: JobSpec) -> None:
        raise DataError("a.jsonl: no rows; give a set that holds some.")

    with pytest.raises(SystemExit) as left:
        run_job(main)
    assert left.value.code == 2
    failure = folder.read_failure()
    assert failure is not None
    assert failure.kind is FailureKind.BAD_DATA
    assert failure.message == "a.jsonl: no rows; give a set that holds some."
    assert "Traceback" in capsys.readouterr().err


def test_full_disk_under_the_output_is_told(folder: RunFolder) -> None:
    def main(folder: RunFolder, spec: JobSpec) -> None:
        with open("/dev/full", "w") as file:
            file.write("weights")

    with pytest.raises(SystemExit) as left:
        run_job(main)
    assert left.value.code == 1
    failure = folder.read_failure()
    assert failure is not None
    assert failure.kind is FailureKind.DISK_FULL


def test_sigterm_is_a_flag_and_ends_as_cancelled(folder: RunFolder) -> None:
    def main(folder: RunFolder, spec: JobSpec) -> None:
        raise_if_stop_requested()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop_requested()
        raise_if_stop_requested()

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit):
        run_job(main)
    assert signal.getsignal(signal.SIGTERM) is before
    failure = folder.read_failure()
    assert failure is not None
    assert failure.kind is FailureKind.CANCELLED
    assert JobStoppedError.kind is FailureKind.CANCELLED


def test_result_of_rank_0_does_not_hide_the_failure_of_another(folder: RunFolder) -> None:
    def main(folder: RunFolder, spec: JobSpec) -> JobResult:
        failure = subprocess.run(
            [sys.executable, "-c", OTHER_RANK, str(folder.path)],
            env={**os.environ, "RANK": "1"},
            capture_output=True,
            check=False,
        )
        assert failure.returncode == 1
        return JobResult()

    with pytest.raises(SystemExit) as left:
        run_job(main)
    assert left.value.code == 1
    assert folder.read_result() is None
    failure = folder.read_failure()
    assert failure is not None
    assert failure.message == "ValueError: of rank 1"


OTHER_RANK = """
from alignflow.jobs.worker import run_job
def main(folder, spec):
    raise ValueError("of rank 1")
run_job(main)
"""


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [([], "The only argument is the run folder of a job."), (["{}/none"], "there is no job.json")],
)
def test_wrong_command_line_is_refused(
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["module", *(text.format(tmp_path) for text in arguments)])
    with pytest.raises(SystemExit) as left:
        run_job(lambda folder, spec: None)
    assert left.value.code == 2
    assert sentence in capsys.readouterr().err


def test_frame_loads_neither_torch_nor_prefect() -> None:
    code = (
        "import sys, alignflow.jobs.local, alignflow.jobs.supervisor, alignflow.jobs.wait;"
        "print(sorted({'torch', 'prefect', 'mlflow', 'megatron'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
