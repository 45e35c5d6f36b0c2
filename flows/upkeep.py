"""What runs every few minutes: a look at where preferences land, and at runs that have died."""

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed

from alignflow.flows.config import Recipe
from alignflow.tasks.janitor import sweep
from alignflow.tasks.starting import watched_sources
from alignflow.tasks.watching import WatchRules, look


@flow(name="watch", flow_run_name="watch-{recipe.name}")
def watch(
    recipe: Recipe,
    sources: list[str] | None = None,
    min_new_pairs: int = 1,
    quiet_s: float = 60.0,
) -> State[Any]:
    """Look once whether new preferences have landed, and tell Prefect of them.

    Args:
        recipe: As it is deployed.
        sources: Folders, files and `s3://` prefixes beside those that the recipe names.
        min_new_pairs: Fewest pairs that the version before did not have.
        quiet_s: Seconds for which no file may have changed.
    """
    rules = WatchRules(min_new_pairs=min_new_pairs, quiet_s=quiet_s)
    sighting = look(recipe, watched_sources(recipe, sources or []), rules)
    name = "Refused" if sighting.what == "refused" else None
    return Completed(name=name, message=sighting.sentence)


@flow(name="janitor", flow_run_name="janitor")
def janitor(silent_s: float = 600.0, max_runs: int = 5) -> list[str]:
    """Find runs whose process has died; have those go on that can, and end the others.

    Args:
        silent_s: Seconds without a sign of life after which a process counts as dead; more than
            three times PREFECT_FLOWS_HEARTBEAT_FREQUENCY of every run.
        max_runs: How often a run may have been started; it is not started again after that.
    """
    return sweep(silent_s=silent_s, max_runs=max_runs)
