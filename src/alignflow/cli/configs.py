"""`alignflow config`: look at a recipe as it is resolved, and at the schema."""

import json

import typer

from alignflow.cli.options import Overrides, RecipePath

app = typer.Typer(help="Look at recipes.", no_args_is_help=True)


@app.command()
def show(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Print a recipe with defaults, overrides and variables filled in."""
    from alignflow.config import as_yaml, load_config
    from alignflow.flows.config import Recipe

    print(as_yaml(load_config(Recipe, recipe, overrides=overrides or [])), end="")


@app.command()
def schema() -> None:
    """Print the JSON schema of recipes."""
    from alignflow.flows.config import Recipe

    print(json.dumps(Recipe.model_json_schema(), indent=2))
