"""MLflow as the pipeline uses it, on a real SQLite database."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import DatasetInput
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from alignflow.artifacts import Artifact, ArtifactStore, code_version, stage_key
from alignflow.errors import ConfigError
from alignflow.tasks.tracking import StageRun, Tracker, resolve_version, tracking_uri


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("workspace")


@pytest.fixture(scope="module")
def tracker(workspace: Path) -> Iterator[Tracker]:
    uri = f"sqlite:///{workspace / 'mlflow.db'}"
    tracker = Tracker(uri=uri, experiment="alignflow", artifact_root=workspace / "mlflow")
    run = tracker.start_pipeline("demo-1", {"alignflow.recipe": "demo"})
    yield tracker
    run.end("FINISHED")


@pytest.fixture
def stage(tracker: Tracker) -> StageRun:
    return tracker.start_stage("dpo", {"alignflow.key": "k"})


def publish(workspace: Path, content: str) -> Artifact:
    folder = workspace / f"folder-{content}"
    folder.mkdir()
    (folder / "config.json").write_text(content)
    version = code_version(1)
    key = stage_key("dpo", {"content": content}, {}, version)
    store = ArtifactStore(str(workspace / "artifacts"))
    return store.publish(folder, kind="dpo", key=key, code_version=version)


def dataset_inputs(tracker: Tracker, run: StageRun) -> list[DatasetInput]:
    inputs = MlflowClient(tracker.uri).get_run(run.run_id).inputs
    return list(inputs.dataset_inputs) if inputs is not None else []


def test_same_lines_logged_twice_leave_one_row(tracker: Tracker, stage: StageRun) -> None:
    lines = [
        {"step": step, "num_steps": 2, "phase": "train", "time": 1000.0 + step, "dpo/loss": 0.7}
        for step in (1, 2)
    ]
    stage.log_lines(lines)
    stage.log_lines(lines)
    history = MlflowClient(tracker.uri).get_metric_history(stage.run_id, "dpo/loss")
    assert [(metric.step, metric.value) for metric in history] == [(1, 0.7), (2, 0.7)]


def test_lines_that_cannot_be_recorded_end_no_job(tracker: Tracker) -> None:
    run = tracker.start_stage("dpo", {})
    MlflowClient(tracker.uri).delete_run(run.run_id)
    run.follow_lines([{"step": 1, "dpo/loss": 0.7}])
    assert run.has_lost_lines
    run.end("FAILED")


def test_passwords_are_not_recorded(tracker: Tracker, stage: StageRun) -> None:
    stage.log_params({"source": "https://somebody:secret@host/data"})
    params = MlflowClient(tracker.uri).get_run(stage.run_id).data.params
    assert params == {"source": "https://host/data"}


def test_table_is_read_back_as_it_was_logged(tracker: Tracker, stage: StageRun) -> None:
    rows: dict[str, list[str | float | None]] = {
        "prompt": ["why?", "how?"],
        "reward": [1.5, None],
    }
    stage.log_table(rows, "samples.json")
    client = MlflowClient(tracker.uri)
    experiment = client.get_experiment_by_name("alignflow")
    assert experiment is not None
    table = client.load_table(experiment.experiment_id, "samples.json", [stage.run_id])
    assert table["prompt"].tolist() == ["why?", "how?"]
    assert table["reward"].isna().tolist() == [False, True]


def test_artifacts_are_uploaded_without_asking_for_the_run(
    tracker: Tracker, stage: StageRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "page.html").write_text("page")
    with monkeypatch.context() as patch:
        patch.delattr(SqlAlchemyStore, "get_run")
        stage.log_text("naïve", "manifest.json")
        stage.log_file(tmp_path / "page.html")
        stage.log_folder(tmp_path, "docs")
    client = MlflowClient(tracker.uri)
    top, docs = (client.list_artifacts(stage.run_id, path) for path in (None, "docs"))
    assert [file.path for file in (*top, *docs)] == [
        *("docs", "manifest.json", "page.html"),
        "docs/page.html",
    ]
    manifest = client.download_artifacts(stage.run_id, "manifest.json", str(tmp_path))
    assert Path(manifest).read_text(encoding="utf-8") == "naïve"


def test_nested_config_becomes_dotted_parameters(tracker: Tracker, stage: StageRun) -> None:
    stage.log_params({"beta": 0.1, "parallel": {"tensor_model_parallel_size": 2}})
    params = MlflowClient(tracker.uri).get_run(stage.run_id).data.params
    assert params == {"beta": "0.1", "parallel.tensor_model_parallel_size": "2"}


def test_stage_runs_are_nested_under_the_pipeline_run(tracker: Tracker, stage: StageRun) -> None:
    tags = MlflowClient(tracker.uri).get_run(stage.run_id).data.tags
    assert tags["mlflow.parentRunId"] == tracker.run.run_id
    assert tags["alignflow.stage"] == "dpo"


def test_dataset_is_found_by_our_digest(tracker: Tracker, stage: StageRun, workspace: Path) -> None:
    dataset = publish(workspace, "dataset")
    stage.log_inputs([("preferences", dataset)], [], context="dpo")
    inputs = dataset_inputs(tracker, stage)
    assert [item.dataset.digest for item in inputs] == [f"sha256:{dataset.digest[:29]}"]


def test_stages_that_log_one_dataset_at_once_all_do(tracker: Tracker, workspace: Path) -> None:
    dataset = publish(workspace, "shared")
    runs = [tracker.start_stage(f"stage-{i}", {}) for i in range(6)]
    with ThreadPoolExecutor(len(runs)) as pool:
        for _ in pool.map(lambda run: run.log_inputs([("d", dataset)], [], context="c"), runs):
            pass
    for run in runs:
        assert len(dataset_inputs(tracker, run)) == 1


def test_version_keeps_its_tags_and_is_found_by_alias_and_digest(
    tracker: Tracker, stage: StageRun, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = publish(workspace, "model")
    tags = {"alignflow.digest": model.digest}
    model_id = tracker.log_model(stage, "assistant", model)
    version = tracker.register("assistant", model_id, run=stage, tags=tags)
    tracker.registry.set_alias(version, "candidate")

    found = tracker.registry.version_of("assistant", model.digest)
    assert found is not None
    assert (found.uri, found.aliases) == ("models:/assistant/1", ("candidate",))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracker.uri)
    for ref in ("models:/assistant@candidate", "models:/assistant/1"):
        assert resolve_version(ref, workspace).tags["alignflow.digest"] == model.digest
    # A second recording of the same weights is the same node of the lineage.
    later = tracker.start_stage("dpo", {"alignflow.key": "k"})
    assert tracker.log_model(later, "assistant", model) == model_id


@pytest.mark.parametrize(
    "ref", ["models:/assistant@nobody", "models:/nobody/1", "models:/x", "assistant"]
)
def test_unknown_version_is_bad_input(
    tracker: Tracker, ref: str, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracker.uri)
    with pytest.raises(ConfigError, match=ref):
        resolve_version(ref, workspace)


def test_environment_names_the_server(monkeypatch: pytest.MonkeyPatch, workspace: Path) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert tracking_uri(workspace) == "http://127.0.0.1:5000"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert tracking_uri(workspace) == f"sqlite:///{workspace}/mlflow.db"


def test_final_metrics_carry_the_time_they_are_given(tracker: Tracker, stage: StageRun) -> None:
    now = int(datetime.now(UTC).timestamp() * 1000)
    stage.log({"truthfulness/mc1": 0.5}, time_ms=now)
    (metric,) = MlflowClient(tracker.uri).get_metric_history(stage.run_id, "truthfulness/mc1")
    assert (metric.value, metric.timestamp) == (0.5, now)


def test_more_values_than_a_request_takes_are_all_recorded(
    tracker: Tracker, stage: StageRun
) -> None:
    lines = [{"step": step, "dpo/loss": 1.0 / step} for step in range(1, 1002)]
    stage.log({"dpo/accuracy": 0.5}, time_ms=1, lines=lines, tags={"alignflow.digest": "d"})
    client = MlflowClient(tracker.uri)
    run = client.get_run(stage.run_id).data
    assert (run.metrics["dpo/accuracy"], run.tags["alignflow.digest"]) == (0.5, "d")
    assert len(client.get_metric_history(stage.run_id, "dpo/loss")) == 1001


def test_config_and_values_of_a_stage_go_in_one_request(
    tracker: Tracker, stage: StageRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = []
    log_batch = MlflowClient.log_batch

    def counted(client: MlflowClient, *args: Any, **kwargs: Any) -> Any:
        requests.append(kwargs)
        return log_batch(client, *args, **kwargs)

    monkeypatch.setattr(MlflowClient, "log_batch", counted)
    stage.log(
        {"dpo/accuracy": 0.5},
        time_ms=1,
        lines=[{"step": 1, "dpo/loss": 0.7}],
        tags={"alignflow.digest": "d"},
        config={"beta": 0.1},
    )
    assert len(requests) == 1
    data = MlflowClient(tracker.uri).get_run(stage.run_id).data
    assert data.metrics == {"dpo/accuracy": 0.5, "dpo/loss": 0.7}
    assert (data.params, data.tags["alignflow.digest"]) == ({"beta": "0.1"}, "d")


def test_config_of_more_keys_than_a_request_takes_is_recorded_whole(
    tracker: Tracker, stage: StageRun
) -> None:
    config = {f"key_{number}": number for number in range(201)}
    stage.log({}, time_ms=1, config=config)
    assert len(MlflowClient(tracker.uri).get_run(stage.run_id).data.params) == 201


def test_tags_are_recorded_without_values(tracker: Tracker, stage: StageRun) -> None:
    stage.log({}, time_ms=1, tags={"alignflow.digest": "d"})
    tags = MlflowClient(tracker.uri).get_run(stage.run_id).data.tags
    assert tags["alignflow.digest"] == "d"


def test_another_workspace_of_the_process_has_a_database_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    first = tmp_path / "first"
    first.mkdir()
    Tracker(uri=tracking_uri(first), experiment="alignflow", artifact_root=first / "mlflow")
    assert tracking_uri(tmp_path / "second") == f"sqlite:///{tmp_path / 'second' / 'mlflow.db'}"
