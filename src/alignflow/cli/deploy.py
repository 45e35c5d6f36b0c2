"""`alignflow deploy`: make a Prefect server hold deployments, schedules, triggers and channels."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alignflow.cli.options import Format, OutputFormat, Overrides

if TYPE_CHECKING:
    from alignflow.flows.config import Recipe
    from alignflow.tasks.deployment.apply import Change


def deploy(
    recipe: Annotated[
        list[Path] | None,
        typer.Option("--recipe", metavar="RECIPE", help="Recipe to deploy; may be repeated."),
    ] = None,
    overrides: Overrides = None,
    file: Annotated[
        Path | None,
        typer.Option(help="What to make; else the deployments/prefect.yaml of alignflow."),
    ] = None,
    paths_from: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder of the workers' machines in which the recipes' relative paths are meant; "
            "else this one, and what they name is looked for.",
        ),
    ] = None,
    format: OutputFormat = Format.TABLE,
) -> None:
    """Make the Prefect server of PREFECT_API_URL hold what deployments/prefect.yaml says."""
    from alignflow.config import load_config
    from alignflow.tasks.deployment.config import DEFAULT_FILE, DeploymentFile

    wanted = load_config(DeploymentFile, file or DEFAULT_FILE)
    recipes = [_load_recipe(path, overrides or [], paths_from) for path in recipe or []]

    from alignflow.tasks.deployment.apply import apply_deployments, apply_pools
    from alignflow.tasks.deployment.notifications import apply_notifications
    from alignflow.tasks.prefect_api import prefect_client

    with prefect_client() as client:
        changes = [
            *apply_pools(client, wanted.work_pools),
            *apply_deployments(client, wanted, recipes),
            *apply_notifications(client, wanted.notifications),
        ]
    _print(changes, format)


def _load_recipe(path: Path, overrides: list[str], paths_from: Path | None) -> "Recipe":
    from alignflow.config import load_config
    from alignflow.errors import ConfigError
    from alignflow.flows.config import Recipe
    from alignflow.tasks.deployment.paths import with_absolute_paths
    from alignflow.tasks.preflight import check_inputs

    recipe = load_config(Recipe, path, overrides=overrides)
    if recipe.compare is not None:
        raise ConfigError(f"{path}: it compares methods and registers nothing; deploy one of them.")
    if paths_from is None:
        check_inputs(recipe)
        return with_absolute_paths(recipe, Path.cwd())
    if not paths_from.is_absolute():
        raise ConfigError(f"--paths-from {paths_from}: give an absolute path.")
    return with_absolute_paths(recipe, paths_from)


def _print(changes: "list[Change]", format: Format) -> None:
    if format is Format.JSON:
        print(json.dumps([change._asdict() for change in changes], indent=2))
        return
    for change in changes:
        print(f"{change.what:10} {change.kind:18} {change.name}")
    made = sum(change.what != "unchanged" for change in changes)
    print(f"{made} changes" if made else "nothing changed")
