"""The only module that talks to MLflow: runs, metrics, datasets, lineage edges, the registry.

One parent run a pipeline run, one nested run a stage. Checkpoints stay in the artifact store;
MLflow holds their URI and manifest. Everything goes through `MlflowClient` with explicit run ids,
because stages log from several threads at once and the fluent API's active run is a thread's own.
"""

import json
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# A server that is away must not hold a stage, nor a cancellation, for the client's many minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")

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
    RunTag,
)
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from alignflow.artifacts import Artifact
from alignflow.errors import ConfigError
from alignflow.tasks.logs import run_logger
from alignflow.urls import without_credentials

# Its lines about database tables would stand in the middle of the stage table.
logging.getLogger("mlflow").setLevel(logging.WARNING)

# MLflow's dataset table holds 36 characters: "sha256:" and 29 hex digits.
_DIGEST_CHARS = 29
_MAX_BATCH = 1000
_MAX_PARAM_CHARS = 6000
_PAUSES_S = (0.1, 0.5, 2.0)
_NOT_METRICS = frozenset({"step", "num_steps", "time", "phase"})


P = ParamSpec("P")
R = TypeVar("R")

_one_at_a_time = threading.Lock()


class _Writer:
    """Makes writing calls, and makes them again where another writer was quicker.

    MLflow looks whether a row is there and then inserts it: of two writers at once, one meets the
    other's row, or a locked database, and finds everything in place at its next try. A database
    file has one writer at a time anyway, so the threads of this process take turns there.
    """

    def __init__(self, uri: str) -> None:
        is_file = uri.startswith("sqlite:")
        self._turn: AbstractContextManager[Any] = _one_at_a_time if is_file else nullcontext()

    def __call__(self, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        for pause_s in _PAUSES_S:
            try:
                with self._turn:
                    return call(*args, **kwargs)
            except MlflowException as error:
                if not any(sign in str(error) for sign in ("IntegrityError", "database is locked")):
                    raise
                time.sleep(pause_s)
        with self._turn:
            return call(*args, **kwargs)


def tracking_uri(workspace: Path) -> str:
    """Return `MLFLOW_TRACKING_URI` where it is set, else a SQLite file in the workspace."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{workspace / 'mlflow.db'}"


@dataclass(frozen=True)
class RegisteredVersion:
    """A version in the registry."""

    name: str
    version: str
    tags: Mapping[str, str]
    aliases: tuple[str, ...]

    @property
    def uri(self) -> str:
        """`models:/NAME/VERSION`."""
        return f"models:/{self.name}/{self.version}"


class StageRun:
    """The nested run of one stage."""

    def __init__(self, client: MlflowClient, write: _Writer, run_id: str) -> None:
        self._client = client
        self._write = write
        self.run_id = run_id
        self.has_lost_lines = False

    def log_params(self, config: Mapping[str, Any]) -> None:
        """Record a config, its nested keys joined by dots."""
        params = [
            Param(key, without_credentials(str(value))[:_MAX_PARAM_CHARS])
            for key, value in _flatten(config).items()
        ]
        for start in range(0, len(params), 100):
            self._write(self._client.log_batch, self.run_id, params=params[start : start + 100])

    def log_lines(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Record lines of a job's `metrics.jsonl`, under the time that the job gave them.

        The same line twice in one run makes one row, as long as step, time and value are the same.
        """
        metrics = [
            Metric(name, float(value), int(float(line.get("time", 0)) * 1000), int(line["step"]))
            for line in lines
            if "step" in line
            for name, value in line.items()
            if name not in _NOT_METRICS and isinstance(value, int | float)
        ]
        for start in range(0, len(metrics), _MAX_BATCH):
            self._write(
                self._client.log_batch, self.run_id, metrics=metrics[start : start + _MAX_BATCH]
            )

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
                _first_line(error),
            )

    def log_metrics(self, metrics: Mapping[str, float], *, time_ms: int) -> None:
        """Record final values."""
        batch = [Metric(name, value, time_ms, 0) for name, value in metrics.items()]
        for start in range(0, len(batch), _MAX_BATCH):
            self._write(
                self._client.log_batch, self.run_id, metrics=batch[start : start + _MAX_BATCH]
            )

    def log_dataset(self, name: str, artifact: Artifact, *, context: str) -> None:
        """Record a dataset artifact as an input, under our own content digest."""
        dataset = Dataset(
            name=name,
            digest=f"sha256:{artifact.digest[:_DIGEST_CHARS]}",
            source_type="local" if artifact.uri.startswith(("/", "file:")) else "s3",
            source=json.dumps({"uri": artifact.uri}),
        )
        tags = [InputTag("mlflow.data.context", context)]
        self._write(self._client.log_inputs, self.run_id, datasets=[DatasetInput(dataset, tags)])

    def log_model_input(self, model_id: str) -> None:
        """Record the edge from a model of another stage to this run."""
        self._write(self._client.log_inputs, self.run_id, models=[LoggedModelInput(model_id)])

    def log_folder(self, folder: Path, name: str) -> None:
        """Upload a folder, such as Data Docs, as artifacts of the run."""
        self._write(self._client.log_artifacts, self.run_id, str(folder), name)

    def log_file(self, path: Path) -> None:
        """Upload one file as an artifact of the run."""
        self._write(self._client.log_artifact, self.run_id, str(path))

    def log_text(self, text: str, name: str) -> None:
        """Upload a text as an artifact of the run."""
        self._write(self._client.log_text, self.run_id, text, name)

    def log_table(self, columns: Mapping[str, Sequence[Any]], name: str) -> None:
        """Upload a table, which MLflow's evaluation page shows row by row."""
        # MLflow asks for the columns of objects, which texts by themselves no longer are in pandas.
        table = pandas.DataFrame(dict(columns), dtype=object)
        self._write(self._client.log_table, self.run_id, table, name)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags on the run."""
        self._write(
            self._client.log_batch,
            self.run_id,
            tags=[RunTag(key, value) for key, value in tags.items()],
        )

    def end(self, status: str) -> None:
        """Close the run: `FINISHED`, `FAILED` or `KILLED`.

        It is the last thing that happens to a run, often because of another error, which a server
        that is away must not hide.
        """
        try:
            self._write(self._client.set_terminated, self.run_id, status)
        except MlflowException as error:
            run_logger().warning("MLflow can't close its run (%s).", _first_line(error))


class Tracker:
    """One pipeline run in MLflow.

    Raises:
        ConfigError: The tracking server or database can't be reached.
    """

    def __init__(self, *, uri: str, experiment: str, artifact_root: Path) -> None:
        self.uri = uri
        mlflow.set_tracking_uri(uri)
        self._client = MlflowClient(uri)
        self._write = _Writer(uri)
        try:
            self._experiment_id = self._find_experiment(experiment, artifact_root)
        except MlflowException as error:
            raise ConfigError(
                f"MLflow at {without_credentials(uri)} can't be used ({_first_line(error)}); "
                "start it, or unset MLFLOW_TRACKING_URI to use a file in the workspace."
            ) from None
        self._parent: StageRun | None = None

    def _find_experiment(self, name: str, artifact_root: Path) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        # A server decides itself where artifacts go; our own SQLite file would put them into the
        # current directory.
        root = artifact_root.as_uri() if self.uri.startswith("sqlite:") else None
        try:
            return str(self._client.create_experiment(name, artifact_location=root))
        except MlflowException:
            # Another run created it in between.
            found = self._client.get_experiment_by_name(name)
            if found is None:
                raise
            return str(found.experiment_id)

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
        self._parent = StageRun(self._client, self._write, run.info.run_id)
        self._parent.log_params(recipe or {})
        return self._parent

    def start_stage(self, name: str, tags: Mapping[str, str]) -> StageRun:
        """Open the nested run of a stage."""
        nested = {"mlflow.parentRunId": self.run.run_id, "alignflow.stage": name, **tags}
        run = self._write(self._client.create_run, self._experiment_id, run_name=name, tags=nested)
        return StageRun(self._client, self._write, run.info.run_id)

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
            model_id = str(model.model_id)
        self._write(
            self._client.log_outputs, run.run_id, models=[LoggedModelOutput(model_id, step=0)]
        )
        return model_id

    def find_model(self, artifact: Artifact) -> str | None:
        """Return MLflow's id of the model with the artifact's digest, if it was recorded."""
        found = self._client.search_logged_models(
            experiment_ids=[self._experiment_id],
            filter_string=f"tags.`alignflow.digest` = '{artifact.digest}'",
            max_results=1,
        )
        return str(found[0].model_id) if found else None

    def version_of(self, name: str, digest: str) -> RegisteredVersion | None:
        """Return the registered version that holds the model with this digest."""
        for version in self._versions(name):
            if version.tags.get("alignflow.digest") == digest:
                return self.get_version(name, str(version.version))
        return None

    def _versions(self, name: str) -> Sequence[ModelVersion]:
        quoted = name.replace("'", "")
        return list(self._client.search_model_versions(f"name='{quoted}'"))

    def get_version(self, name: str, version_or_alias: str) -> RegisteredVersion | None:
        """Return a version by number or alias, or None."""
        return find_version(self._client, name, version_or_alias)

    def register(
        self, name: str, model_id: str, *, run: StageRun, tags: Mapping[str, str]
    ) -> RegisteredVersion:
        """Create a version of the registered model."""
        try:
            self._write(self._client.create_registered_model, name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        version = self._write(
            self._client.create_model_version,
            name,
            source=f"models:/{model_id}",
            run_id=run.run_id,
            tags=dict(tags),
        )
        found = self.get_version(name, str(version.version))
        if found is None:
            raise RuntimeError(f"MLflow lost version {version.version} of {name}")
        return found

    def set_version_tags(self, version: RegisteredVersion, tags: Mapping[str, str]) -> None:
        """Set tags on a version."""
        for key, value in tags.items():
            self._write(
                self._client.set_model_version_tag, version.name, version.version, key, value
            )

    def set_alias(self, version: RegisteredVersion, alias: str) -> RegisteredVersion:
        """Point an alias at a version and return the version with it."""
        self._write(self._client.set_registered_model_alias, version.name, alias, version.version)
        return replace(version, aliases=(*version.aliases, alias))


def find_version(
    client: MlflowClient, name: str, version_or_alias: str
) -> RegisteredVersion | None:
    """Return a version by number or alias, or None where there is none."""
    try:
        if version_or_alias.isdigit():
            found = client.get_model_version(name, version_or_alias)
        else:
            found = client.get_model_version_by_alias(name, version_or_alias)
    except MlflowException as error:
        # An unknown alias is a bad parameter to MLflow; a server that is down is neither.
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise
    return RegisteredVersion(
        name=name,
        version=str(found.version),
        tags=dict(found.tags),
        aliases=tuple(found.aliases),
    )


def resolve_version(ref: str, workspace: Path) -> RegisteredVersion:
    """Return the version that `models:/NAME@ALIAS` or `models:/NAME/VERSION` names.

    Raises:
        ConfigError: It has another form, the registry holds no such version, or can't be asked.
    """
    match = re.fullmatch(r"models:/(?P<name>[^/@]+)[/@](?P<version>[^/@]+)", ref)
    if match is None:
        raise ConfigError(f"{ref}: a model is named models:/NAME@ALIAS or models:/NAME/VERSION.")
    uri = tracking_uri(workspace.absolute())
    mlflow.set_tracking_uri(uri)
    try:
        found = find_version(MlflowClient(uri), match["name"], match["version"])
    except MlflowException as error:
        raise ConfigError(
            f"{ref}: MLflow at {without_credentials(uri)} can't be asked ({_first_line(error)})."
        ) from None
    if found is None or "alignflow.digest" not in found.tags:
        raise ConfigError(
            f"{ref}: the registry at {without_credentials(uri)} holds no such version of alignflow."
        )
    return found


def _flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat.update(_flatten(value, f"{name}."))
        else:
            flat[name] = value
    return flat


def _first_line(error: Exception) -> str:
    # MLflow names the URL that it asked, password and all.
    return without_credentials(str(error).strip().splitlines()[0])[:200]
