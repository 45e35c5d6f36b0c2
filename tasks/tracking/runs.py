"""Runs in MLflow: metrics, datasets and lineage edges.

One parent run a pipeline run, one nested run a stage. Checkpoints stay in the artifact store;
MLflow holds their URI and manifest. Everything goes through `MlflowClient` with explicit run ids,
because stages log from several threads at once and the fluent API's active run is a thread's own.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import mlflow
import pandas
from mlflow import MlflowClient
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModelInput,
    LoggedModelOutput,
    Metric,
    Param,
    Run,
    RunTag,
)
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from alignflow.artifacts import Artifact
from alignflow.errors import ConfigError
from alignflow.tasks.logs import run_logger
from alignflow.tasks.tracking.client import Writer, find_experiment, first_line, use_tracking_uri
from alignflow.tasks.tracking.registry import RegisteredVersion, Registry
from alignflow.urls import without_credentials

# MLflow's dataset table holds 36 characters: "sha256:" and 29 hex digits.
_DIGEST_CHARS = 29
# A request takes a hundred parameters, a hundred tags, and a thousand of all kinds together.
_MAX_PARAMS = 100
_MAX_METRICS = 800
_MAX_PARAM_CHARS = 6000
_NOT_METRICS = frozenset({"step", "num_steps", "time", "phase"})

T = TypeVar("T")


class StageRun:
    """The nested run of one stage."""

    def __init__(self, client: MlflowClient, write: Writer, run: Run) -> None:
        self._client = client
        self._write = write
        self._artifact_uri: str = run.info.artifact_uri
        self.run_id: str = run.info.run_id
        self.has_lost_lines = False

    @cached_property
    def _artifacts(self) -> ArtifactRepository:
        """Where its artifacts go; the client would ask the server for the run to know."""
        return get_artifact_repository(self._artifact_uri, tracking_uri=self._client.tracking_uri)

    def log_params(self, config: Mapping[str, Any]) -> None:
        """Record a config, its nested keys joined by dots."""
        self._log(params=_params_of(config))

    def log_lines(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Record lines of a job's `metrics.jsonl`, under the time that the job gave them.

        The same line twice in one run makes one row, as long as step, time and value are the same.
        """
        self._log(metrics=_metrics_of(lines))

    def follow_lines(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Record lines while the job runs, whose end must not depend on MLflow.

        After an error no more are recorded; `has_lost_lines` then asks for them at the end.
        """
        if self.has_lost_lines:
            return
        try:
            self.log_lines(lines)
        except MlflowException as error:
            self.has_lost_lines = True
            run_logger().warning(
                "MLflow takes no metrics (%s); they follow at the end of the stage.",
                first_line(error),
            )

    def log(
        self,
        metrics: Mapping[str, float],
        *,
        time_ms: int,
        lines: Iterable[Mapping[str, Any]] = (),
        tags: Mapping[str, str] | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        """Record final values in few requests together with the rest.

        Args:
            metrics: The final values.
            time_ms: When they were made.
            lines: As for `log_lines`.
            tags: Of the run.
            config: As for `log_params`.
        """
        final = [Metric(name, value, time_ms, 0) for name, value in metrics.items()]
        self._log(
            metrics=[*_metrics_of(lines), *final],
            params=_params_of(config or {}),
            tags=[RunTag(key, value) for key, value in (tags or {}).items()],
        )

    def log_inputs(
        self, datasets: Sequence[tuple[str, Artifact]], models: Sequence[str], *, context: str
    ) -> None:
        """Record what the stage reads.

        Args:
            datasets: With their names; each is recorded under our own content digest.
            models: MLflow's ids of models that other stages made.
            context: What the datasets are read for.
        """
        if not datasets and not models:
            return
        tags = [InputTag("mlflow.data.context", context)]
        self._write(
            self._client.log_inputs,
            self.run_id,
            datasets=[DatasetInput(_dataset(*named), tags) for named in datasets],
            models=[LoggedModelInput(model_id) for model_id in models],
        )

    def log_folder(self, folder: Path, name: str) -> None:
        """Upload a folder, such as Data Docs, as artifacts of the run."""
        self._write(self._artifacts.log_artifacts, str(folder), name)

    def log_file(self, path: Path) -> None:
        """Upload one file as an artifact of the run."""
        self._write(self._artifacts.log_artifact, str(path))

    def log_text(self, text: str, name: str) -> None:
        """Upload a text as an artifact of the run."""
        with TemporaryDirectory() as folder:
            path = Path(folder) / name
            path.write_text(text, encoding="utf-8")
            self.log_file(path)

    def log_table(self, columns: Mapping[str, Sequence[Any]], name: str) -> None:
        """Upload a table, which MLflow's evaluation page shows row by row."""
        # MLflow asks for the columns of objects, which texts by themselves no longer are in pandas.
        table = pandas.DataFrame(dict(columns), dtype=object)
        self._write(self._client.log_table, self.run_id, table, name)

    def end(self, status: str) -> None:
        """Close the run: `FINISHED`, `FAILED` or `KILLED`.

        It is the last thing that happens to a run, often because of another error, which a server
        that is away must not hide.
        """
        try:
            self._write(self._client.set_terminated, self.run_id, status)
        except MlflowException as error:
            run_logger().warning("MLflow can't close its run (%s).", first_line(error))

    def _log(
        self,
        *,
        metrics: Sequence[Metric] = (),
        params: Sequence[Param] = (),
        tags: Sequence[RunTag] = (),
    ) -> None:
        requests = zip_longest(
            _split(metrics, _MAX_METRICS), _split(params, _MAX_PARAMS), [tags], fillvalue=()
        )
        for some_metrics, some_params, all_tags in requests:
            self._write(
                self._client.log_batch,
                self.run_id,
                metrics=some_metrics,
                params=some_params,
                tags=all_tags,
            )


class Tracker:
    """One pipeline run in MLflow.

    Raises:
        ConfigError: The tracking server or database can't be reached.
    """

    def __init__(self, *, uri: str, experiment: str, artifact_root: Path) -> None:
        self.uri = uri
        use_tracking_uri(uri)
        self._client = MlflowClient(uri)
        self._write = Writer(uri)
        try:
            # A server decides itself where artifacts go; our own SQLite file would put them into
            # the current directory.
            root = artifact_root.as_uri() if uri.startswith("sqlite:") else None
            self._experiment_id = find_experiment(self._client, experiment, root)
        except MlflowException as error:
            raise ConfigError(
                f"MLflow at {without_credentials(uri)} can't be used ({first_line(error)}); "
                "start it, or unset MLFLOW_TRACKING_URI to use a file in the workspace."
            ) from None
        self.registry = Registry(uri)
        self._model_ids: dict[str, str] = {}
        self._parent: StageRun | None = None

    @property
    def run_url(self) -> str | None:
        """Page of the parent run; None with a database file, which needs a server first."""
        if not self.uri.startswith("http"):
            return None
        page = f"#/experiments/{self._experiment_id}/runs/{self.run.run_id}"
        return f"{without_credentials(self.uri)}/{page}"

    def version_url(self, version: RegisteredVersion) -> str | None:
        """Page of a registered version; None with a database file."""
        if not self.uri.startswith("http"):
            return None
        return f"{without_credentials(self.uri)}/#/models/{version.name}/versions/{version.version}"

    @property
    def run(self) -> StageRun:
        """The parent run."""
        if self._parent is None:
            raise RuntimeError("start_pipeline comes first")
        return self._parent

    def start_pipeline(
        self, name: str, tags: Mapping[str, str], recipe: Mapping[str, Any] | None = None
    ) -> StageRun:
        """Open the parent run, with the recipe as its parameters."""
        run = self._write(
            self._client.create_run, self._experiment_id, run_name=name, tags=dict(tags)
        )
        self._parent = StageRun(self._client, self._write, run)
        self._parent.log_params(recipe or {})
        return self._parent

    def start_stage(self, name: str, tags: Mapping[str, str]) -> StageRun:
        """Open the nested run of a stage."""
        nested = {"mlflow.parentRunId": self.run.run_id, "alignflow.stage": name, **tags}
        run = self._write(self._client.create_run, self._experiment_id, run_name=name, tags=nested)
        return StageRun(self._client, self._write, run)

    def log_model(self, run: StageRun, name: str, artifact: Artifact) -> str:
        """Record a model-bearing artifact as the run's output; return MLflow's model id.

        An artifact already recorded by an earlier run keeps its id, so that edges of reused stages
        meet in one node.
        """
        model_id = self.find_model(artifact)
        if model_id is None:
            model = self._write(
                mlflow.create_external_model,
                name=name,
                source_run_id=run.run_id,
                experiment_id=self._experiment_id,
                model_type=artifact.kind,
                tags={
                    "alignflow.digest": artifact.digest,
                    "alignflow.key": artifact.key,
                    "alignflow.uri": artifact.uri,
                },
            )
            model_id = self._model_ids[artifact.digest] = str(model.model_id)
        self._write(
            self._client.log_outputs, run.run_id, models=[LoggedModelOutput(model_id, step=0)]
        )
        return model_id

    def find_model(self, artifact: Artifact) -> str | None:
        """Return MLflow's id of the model with the artifact's digest, if it was recorded."""
        known = self._model_ids.get(artifact.digest)
        if known is not None:
            return known
        found = self._client.search_logged_models(
            experiment_ids=[self._experiment_id],
            filter_string=f"tags.`alignflow.digest` = '{artifact.digest}'",
            max_results=1,
        )
        if not found:
            return None
        model_id = self._model_ids[artifact.digest] = str(found[0].model_id)
        return model_id

    def register(
        self, name: str, model_id: str, *, run: StageRun, tags: Mapping[str, str]
    ) -> RegisteredVersion:
        """Create a version of the registered model."""
        source = f"models:/{model_id}"
        return self.registry.add(name, source, run_id=run.run_id, tags=tags, model_id=model_id)


def _params_of(config: Mapping[str, Any]) -> list[Param]:
    return [
        Param(key, without_credentials(str(value))[:_MAX_PARAM_CHARS])
        for key, value in _flatten(config).items()
    ]


def _metrics_of(lines: Iterable[Mapping[str, Any]]) -> list[Metric]:
    return [
        Metric(name, float(value), int(float(line.get("time", 0)) * 1000), int(line["step"]))
        for line in lines
        if "step" in line
        for name, value in line.items()
        if name not in _NOT_METRICS and isinstance(value, int | float)
    ]


def _split(items: Sequence[T], size: int) -> list[Sequence[T]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _dataset(name: str, artifact: Artifact) -> Dataset:
    return Dataset(
        name=name,
        digest=f"sha256:{artifact.digest[:_DIGEST_CHARS]}",
        source_type="local" if artifact.uri.startswith(("/", "file:")) else "s3",
        source=json.dumps({"uri": artifact.uri}),
    )


def _flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat.update(_flatten(value, f"{name}."))
        else:
            flat[name] = value
    return flat
