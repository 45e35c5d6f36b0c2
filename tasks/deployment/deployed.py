"""The recipes that a Prefect server holds."""

from typing import Any

from prefect.client.schemas.filters import FlowFilter, FlowFilterName

from alignflow.tasks.prefect_api import prefect_client
from alignflow.tasks.watching import TRIGGERED


def deployed_recipes() -> dict[str, dict[str, Any]]:
    """Return the deployed recipes by name, as their runs get them.

    Raises:
        ConfigError: Prefect's settings name no server, or it doesn't answer.
    """
    with prefect_client() as client:
        found = client.read_deployments(
            flow_filter=FlowFilter(name=FlowFilterName(any_=[TRIGGERED])), limit=200
        )
    return {each.name: each.parameters["recipe"] for each in sorted(found, key=lambda d: d.name)}
