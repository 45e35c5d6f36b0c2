"""What a recipe may ask of a cluster that checks rows, and what is said where it can't be had."""

from concurrent.futures import Future
from importlib.util import find_spec
from typing import Any

import dask
import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings
from pydantic import ValidationError

from alignflow.data_validation.config import RowLimits
from alignflow.data_validation.contamination import BenchmarkTexts
from alignflow.data_validation.judging import BlockJudge
from alignflow.errors import ConfigError, RunStoppedError, WorkerError
from alignflow.tasks import prefect_server, row_checks
from alignflow.tasks.config import RowChecksConfig
from alignflow.tasks.row_checks import PartTasks, RowChecks

URL = "http://127.0.0.1:4200/api"
JUDGE = BlockJudge("sft", RowLimits(), BenchmarkTexts(()))


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"address": "tcp://here:1"}, "do nothing with runner: local"),
        ({"num_processes": 2}, "do nothing with runner: local"),
        ({"parts_ahead": 3}, "do nothing with runner: local"),
        ({"runner": "dask", "address": "tcp://here:1", "num_processes": 2}, "leave it out"),
    ],
)
def test_a_field_that_would_do_nothing_is_refused(config: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        RowChecksConfig.model_validate(config)


def test_processes_of_this_machine_need_no_cluster() -> None:
    assert RowChecks.of(RowChecksConfig()) is None


@pytest.mark.skipif(find_spec("prefect_ray") is not None, reason="prefect-ray is installed")
def test_a_runner_that_is_not_installed_is_named_before_anything_runs() -> None:
    with pytest.raises(ConfigError, match=r"pip install 'alignflow\[ray\]'"):
        RowChecks.of(RowChecksConfig(runner="ray"))


@pytest.mark.parametrize("address", ["tcp://scheduler.example:8786", "scheduler.example:8786"])
def test_workers_elsewhere_need_a_server_that_they_can_reach(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RowChecksConfig(runner="dask", address=address)
    with temporary_settings({PREFECT_API_URL: URL}):
        assert RowChecks.of(config)
        monkeypatch.setattr(prefect_server, "_temporary_urls", {URL})
        for here in ("tcp://127.0.0.1:8786", "localhost:8786", "tcp://[::1]:8786"):
            assert RowChecks.of(RowChecksConfig(runner="dask", address=here))
        with pytest.raises(ConfigError, match=r"on scheduler\.example, from where the temporary"):
            RowChecks.of(config)


def test_a_cluster_that_does_not_answer_is_a_clear_error() -> None:
    checks = RowChecks(RowChecksConfig(runner="dask", address="tcp://127.0.0.1:1"))
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "0.1s"}),
        pytest.raises(ConfigError, match=r"no dask cluster answers at tcp://127\.0\.0\.1:1 \("),
    ):
        checks.executor(lambda: None).submit(JUDGE, [])
    checks.close()
    with pytest.raises(RunStoppedError):
        checks.executor(lambda: None).submit(JUDGE, [])


def pending(future: Future[Any], monkeypatch: pytest.MonkeyPatch, stop: BaseException) -> Any:
    """Return a part that waits for a future, in a run that somebody stops."""
    monkeypatch.setattr(row_checks, "_LOOK_S", 0.01)
    looks = iter([None, None, stop])

    def raise_if_stopped() -> None:
        if (error := next(looks)) is not None:
            raise error

    checks = RowChecks(RowChecksConfig(runner="dask"))
    tasks = PartTasks(checks, parts_ahead=1, raise_if_stopped=raise_if_stopped)
    monkeypatch.setattr(checks, "submit", lambda part: future)
    return tasks.submit(JUDGE, [])


def test_who_waits_for_a_part_leaves_when_the_run_is_stopped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    part = pending(Future(), monkeypatch, RunStoppedError("over"))
    with pytest.raises(RunStoppedError):
        part.result()


def test_a_part_that_fails_there_is_told_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    future: Future[Any] = Future()
    future.set_exception(MemoryError("no room"))
    part = pending(future, monkeypatch, RunStoppedError("over"))
    with pytest.raises(WorkerError, match=r"on the dask cluster \(MemoryError: no room\)"):
        part.result()
