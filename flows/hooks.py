"""What Prefect asks of every pipeline: a name for its run, and an end to a cancelled one."""

from datetime import UTC, datetime
from typing import Any

from prefect import runtime
from prefect.client.schemas.objects import FlowRun, State
from prefect.flows import Flow

from alignflow.flows.config import Recipe
from alignflow.tasks.lifecycle import cancel_jobs, confirm_cancellation


def run_name() -> str:
    """Name a flow run after its recipe and the time it started."""
    recipe = runtime.flow_run.parameters["recipe"]
    name = recipe["name"] if isinstance(recipe, dict) else recipe.name
    return f"{name}-{datetime.now(UTC):%Y%m%d-%H%M%S}"


def on_cancellation(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """End the jobs of a cancelled run; a worker calls this in another process than the flow's."""
    cancel_jobs(Recipe.model_validate(flow_run.parameters["recipe"]), str(flow_run.id))
    confirm_cancellation(flow_run.id)
