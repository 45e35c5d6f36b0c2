"""A client of the Prefect server that the settings name, and its errors as one sentence."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.orchestration.routes import ServerRoutes
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowRunFilter,
    FlowRunFilterId,
    TaskRunFilter,
    TaskRunFilterState,
    TaskRunFilterStateType,
)
from prefect.client.schemas.objects import State, StateType, TaskRun
from prefect.exceptions import ObjectNotFound, PrefectException, PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL

from alignflow.errors import ConfigError, PrefectError
from alignflow.urls import without_credentials


@contextmanager
def prefect_client() -> Iterator[SyncPrefectClient]:
    """Give a client of the server.

    Raises:
        ConfigError: The settings name no server, or it doesn't answer or asks for a password.
        PrefectError: It refused a request.
    """
    url = PREFECT_API_URL.value()
    if not url:
        raise ConfigError("no Prefect server is named; set PREFECT_API_URL to one.")
    url = without_credentials(url)
    try:
        with get_client(sync_client=True) as client:
            yield client
    except PrefectHTTPStatusError as error:
        if error.response.status_code in (401, 403):
            raise ConfigError(
                f"Prefect at {url} asks for a password; set PREFECT_API_AUTH_STRING to "
                "user:password."
            ) from None
        raise PrefectError(
            f"Prefect at {url} refused {error.request.method} {error.request.url.path} "
            f"({error.response.status_code}: {error.response.text[:500]})."
        ) from error
    except httpx.TransportError as error:
        raise ConfigError(
            f"PREFECT_API_URL: Prefect doesn't answer at {url} ({error or type(error).__name__})."
        ) from None
    except (ObjectNotFound, PrefectException) as error:
        raise PrefectError(f"Prefect at {url} failed ({error}).") from error


def read_or_none(client: SyncPrefectClient, path: ServerRoutes, **names: str) -> Any:
    """Return what the server holds at a path, or None where it holds nothing there.

    Args:
        client: Of the server.
        path: With the names in braces.
        names: What stands for them.
    """
    try:
        return client.request(
            "GET", path, path_params=names, params={"include_secrets": True}
        ).json()
    except PrefectHTTPStatusError as error:
        if error.response.status_code == 404:
            return None
        raise


def end_task_runs(client: SyncPrefectClient, flow_run_id: UUID, state: State[Any]) -> None:
    """End the task runs that a dead process has left open: nobody else ever would.

    Args:
        client: Of the server.
        flow_run_id: The run whose process is dead.
        state: What they are shown as.
    """
    for task_run in open_task_runs(client, FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id]))):
        client.set_task_run_state(task_run.id, state, force=True)


def open_task_runs(
    client: SyncPrefectClient, flow_runs: FlowRunFilter, flows: FlowFilter | None = None
) -> list[TaskRun]:
    """Return task runs of some flow runs that Prefect doesn't show as ended, 200 at most."""
    is_open = [StateType.RUNNING, StateType.PENDING, StateType.SCHEDULED, StateType.PAUSED]
    return client.read_task_runs(
        flow_filter=flows,
        flow_run_filter=flow_runs,
        task_run_filter=TaskRunFilter(
            state=TaskRunFilterState(type=TaskRunFilterStateType(any_=is_open))
        ),
    )
