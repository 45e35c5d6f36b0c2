"""From new preferences to a registered model through a server and workers, one of which dies."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowFilter, FlowFilterName
from prefect.client.schemas.objects import FlowRun
from prefect_server import running_worker, server_of_this_process, wait_for
from tiny_recipe import write_tiny_recipe

from alignflow.cli.deploy import deploy
from alignflow.cli.watch import watch
from alignflow.jobs.finding import find_job
from alignflow.jobs.run_folder import RunFolder
from alignflow.jobs.spec import JobStatus
from alignflow.tasks.janitor import sweep
from alignflow.tasks.tracking import Registry

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with server_of_this_process(tmp_path_factory.mktemp("prefect")) as url:
        yield url


def pipeline_runs() -> list[FlowRun]:
    with get_client(sync_client=True) as client:
        return client.read_flow_runs(flow_filter=FlowFilter(name=FlowFilterName(any_=["align"])))


def state_of(flow_run: UUID) -> str:
    with get_client(sync_client=True) as client:
        return str(client.read_flow_run(flow_run).state_name)


def live_training(workspace: Path) -> RunFolder | None:
    """Return the run folder of a training job that runs."""
    for path in workspace.glob("jobs/sft-*"):
        job = find_job(RunFolder(path))
        if job is not None and job.status() is JobStatus.RUNNING:
            return RunFolder(path)
    return None


def test_landed_preferences_are_trained_on_once_though_the_worker_dies(
    api: str, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, workers = write_tiny_recipe(tmp_path, tiny_model), tmp_path / "worker"
    workers.mkdir()
    monkeypatch.chdir(tmp_path)
    # So long that it is still there when the worker isn't any more.
    deploy(recipe=[recipe], overrides=["sft.num_epochs=40"])
    for _ in range(2):
        watch(recipe="tiny", quiet_s=0, once=True)
    workspace = tmp_path / "work"
    with running_worker(api, "alignflow", workers) as worker:
        folder = wait_for(lambda: live_training(workspace), 300)
        (run,) = pipeline_runs()
        assert run.tags.count("alignflow") == 1
        # As a container is stopped: the worker ends its flows and says nothing of them.
        worker.send_signal(signal.SIGTERM)
        worker.wait(60)
    time.sleep(1)
    assert state_of(run.id) == "Running"
    told = sweep(silent_s=600, max_runs=5, settle_s=0)
    assert any("is started again and joins sft-" in each for each in told), told
    with running_worker(api, "alignflow", workers):
        wait_for(lambda: state_of(run.id) in ("Completed", "Failed", "Crashed"), 600)
    assert state_of(run.id) == "Completed"
    # The job went on meanwhile, and was joined.
    job = find_job(folder)
    assert job is not None
    assert job.attempt == 1
    assert len(pipeline_runs()) == 1
    registry = Registry(f"sqlite:///{workspace / 'mlflow.db'}")
    assert registry.get("tiny-assistant", "1") is not None
    assert registry.get("tiny-assistant", "2") is None
