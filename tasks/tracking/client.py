"""The client of MLflow: its settings, where it is, and writes that another writer may cross."""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# A server that is started again is waited for: 2, 4, 8, 16 and 32 s, as Prefect's client does. One
# that stays away must not hold a stage, nor a cancellation, for the client's many minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "5")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
# What a server's client says at a run's end would stand in the JSON of a command.
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from alignflow.errors import RegistryError
from alignflow.urls import without_credentials

# Its lines about database tables would stand in the middle of the stage table.
logging.getLogger("mlflow").setLevel(logging.WARNING)

_PAUSES_S = (0.1, 0.5, 2.0)

P = ParamSpec("P")
R = TypeVar("R")

_one_at_a_time = threading.Lock()


class Writer:
    """Makes writing calls, and makes them again where another writer was quicker.

    MLflow looks whether a row is there and then inserts it: of two writers at once, one meets the
    other's row, or a locked database, and finds everything in place at its next try. A database
    file has one writer at a time anyway, so the threads of this process take turns there.
    """

    def __init__(self, uri: str) -> None:
        is_file = uri.startswith("sqlite:")
        self._turn: AbstractContextManager[Any] = _one_at_a_time if is_file else nullcontext()

    def __call__(self, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Make the call.

        Raises:
            MlflowException: MLflow refuses, can't be reached, or is held by another for too long.
        """
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


def use_tracking_uri(uri: str) -> None:
    """Have MLflow's functions that take no client go there.

    MLflow also writes it into the environment, where the next run of this process, in a workspace
    of its own, would take it for what the user said.
    """
    said = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    if said is None:
        os.environ.pop("MLFLOW_TRACKING_URI", None)
    else:
        os.environ["MLFLOW_TRACKING_URI"] = said


def first_line(error: Exception) -> str:
    """Return the first line of an error of MLflow's, without credentials."""
    if "error code 401" in str(error):
        return "it asks for a password; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
    # MLflow names the URL that it asked, password and all.
    return without_credentials(str(error).strip().splitlines()[0])[:200]


def find_experiment(client: MlflowClient, name: str, artifact_root: str | None) -> str:
    """Return the id of the experiment with this name, which is made where there is none."""
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    try:
        return str(client.create_experiment(name, artifact_location=artifact_root))
    except MlflowException:
        # Another run created it in between.
        found = client.get_experiment_by_name(name)
        if found is None:
            raise
        return str(found.experiment_id)


@contextmanager
def registry_errors() -> Iterator[None]:
    """Turn what MLflow raises into one sentence.

    Raises:
        RegistryError: MLflow refused, or can't be reached.
    """
    try:
        yield
    except MlflowException as error:
        raise RegistryError(f"MLflow failed ({first_line(error)}).") from None
