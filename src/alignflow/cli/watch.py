"""`alignflow watch`: look for new preferences, and have the pipeline run on them once."""

import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from alignflow.errors import AlignflowError, ConfigError

if TYPE_CHECKING:
    from alignflow.flows.config import Recipe

REFUSED = 2


def watch(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SOURCE",
            help="Folder or s3:// prefix beside the preference sources that the recipe names.",
        ),
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(metavar="NAME", help="Deployed recipe; the only one by itself.")
    ] = None,
    min_new_pairs: Annotated[
        int, typer.Option(min=0, help="Fewest pairs that the version before did not have.")
    ] = 1,
    quiet_s: Annotated[
        float, typer.Option(min=0, help="Seconds for which no file may come, go or change.")
    ] = 60.0,
    every_s: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 30.0,
    once: Annotated[bool, typer.Option("--once", help="Look once and end.")] = False,
) -> None:
    """Tell Prefect of each new set of preferences once it is whole; a run follows, once a content.

    With --once it exits with 2 where the set can't be used.
    """
    from alignflow.tasks.starting import watched_sources
    from alignflow.tasks.watching import WatchRules, look

    deployed = _deployed_recipe(recipe)
    everywhere = watched_sources(deployed, sources or [])
    if not everywhere:
        raise ConfigError(f"{deployed.name} takes its preferences from the hub; name a SOURCE.")
    rules = WatchRules(min_new_pairs=min_new_pairs, quiet_s=quiet_s)
    sighting = look(deployed, everywhere, rules)
    print(sighting.sentence, flush=True)
    if once:
        if sighting.what == "refused":
            raise typer.Exit(REFUSED)
        return
    said = sighting.what, sighting.digest
    while True:
        time.sleep(every_s)
        try:
            sighting = look(deployed, everywhere, rules)
        except AlignflowError as error:
            # A server or a bucket that is away may come back.
            print(f"alignflow: {error}", file=sys.stderr, flush=True)
            continue
        if (sighting.what, sighting.digest) != said:
            print(sighting.sentence, flush=True)
        said = sighting.what, sighting.digest


def _deployed_recipe(name: str | None) -> "Recipe":
    """Return a recipe as it is deployed, under a name that may be left out where there is one."""
    from alignflow.flows.config import Recipe
    from alignflow.tasks.deployment.deployed import deployed_recipes

    recipes = deployed_recipes()
    if name is None and len(recipes) != 1:
        raise ConfigError(
            f"--recipe: name one of the deployed recipes: {', '.join(recipes)}."
            if recipes
            else "no recipe is deployed; alignflow deploy --recipe RECIPE does that."
        )
    chosen = name or next(iter(recipes))
    if chosen not in recipes:
        known = ", ".join(recipes) or "none"
        raise ConfigError(f"--recipe {chosen}: no such recipe is deployed; known: {known}.")
    return Recipe.model_validate(recipes[chosen])
