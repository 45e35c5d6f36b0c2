"""Events for Prefect's automations, where the settings name a server."""

import uuid
from collections.abc import Mapping

import httpx
from prefect.client.orchestration import get_client
from prefect.events import Event, Resource
from prefect.settings import PREFECT_API_URL

from alignflow.tasks.logs import run_logger


def emit(
    event: str,
    resource: str,
    payload: Mapping[str, str | int],
    *,
    key: str,
    labels: Mapping[str, str] | None = None,
) -> bool:
    """Post an event, and return whether the server took it; one that is away costs a warning.

    It is posted here and now: Prefect's own `emit_event` leaves it to a thread, which holds the end
    of the process for as long as the server is away.

    Args:
        event: Its name, such as `alignflow.model.promoted`.
        resource: What it is about, such as `alignflow.model.assistant`.
        payload: What automations may use.
        key: The same key is the same event, which the server counts once.
        labels: What else the resource is found and told apart by.
    """
    if not PREFECT_API_URL.value():
        return False
    posted = Event(
        event=event,
        resource=Resource({"prefect.resource.id": resource, **(labels or {})}),
        payload=dict(payload),
        id=uuid.uuid5(uuid.NAMESPACE_OID, f"{event} {key}"),
    )
    try:
        with get_client(sync_client=True) as client:
            client.request("POST", "/events", json=[posted.model_dump(mode="json")])
    except httpx.HTTPError as error:
        run_logger().warning("Prefect did not take the event %s (%s).", event, error)
        return False
    return True
