"""What starts the pipeline by itself: new preferences, a schedule, a backfill.

Each starts runs of the deployment `align/RECIPE` and ends; none waits for them.
"""

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed

from alignflow.flows.config import Method, Recipe
from alignflow.tasks.backfilling import find_versions, start_backfill
from alignflow.tasks.starting import start_if_changed, start_on_landed


@flow(name="align-on-new-preferences", flow_run_name="{recipe.name}-on-{digest:.12}")
def align_on_new_preferences(recipe: Recipe, digest: str, source: str | None = None) -> str:
    """Start the pipeline on preferences that have landed, unless it had them before.

    Args:
        recipe: As it is deployed.
        digest: Of the content, as the event tells it.
        source: Where the preferences lie.
    """
    return start_on_landed(recipe, digest, source)


@flow(name="scheduled-retrain", flow_run_name="retrain-{recipe.name}")
def scheduled_retrain(recipe: Recipe, even_if_unchanged: bool = False) -> State[Any]:
    """Start the pipeline if data or recipe changed since its last run with a verdict.

    Args:
        recipe: As it is deployed.
        even_if_unchanged: Start it in any case.
    """
    started, sentence = start_if_changed(recipe, even_if_unchanged=even_if_unchanged)
    return Completed(name=None if started else "Skipped", message=sentence)


@flow(name="backfill", flow_run_name="backfill-{recipe.name}")
def backfill(
    recipe: Recipe, versions: list[str] | None = None, methods: list[Method] | None = None
) -> list[str]:
    """Start the pipeline on each data version by each method; what had that run has it no more.

    Args:
        recipe: As it is deployed.
        versions: First digits of their digests; all that ever landed, if none is named.
        methods: Ways to align; the recipe's own, if none is named.
    """
    chosen = find_versions(recipe, versions)
    by_method = [recipe.replaced(method=method) for method in methods or [recipe.method]]
    return [start_backfill(each, version) for version in chosen for each in by_method]
