"""Checks that take milliseconds, made before a run starts servers and jobs; no Prefect here."""

from pathlib import Path

from alignflow.artifacts import ArtifactStore
from alignflow.model_source import find_local_model
from alignflow.sources import expand
from alignflow.tasks.config import RunConfig


def open_store(recipe: RunConfig) -> ArtifactStore:
    """Return the recipe's artifact store."""
    return ArtifactStore(recipe.store or str(Path(recipe.workspace).absolute() / "artifacts"))


def check_inputs(recipe: RunConfig) -> None:
    """Refuse a recipe whose store can't be written or whose local inputs aren't there.

    Raises:
        StoreError: The store can't be written.
        ConfigError: The package that ships the model isn't installed.
        DataError: A source names no file, or the model is none.
    """
    data = recipe.data
    uris = [*data.demonstrations.sources, *data.preferences.sources]
    uris += [suite.data for suite in recipe.evaluation.suites.values()]
    for uri in uris:
        if "://" not in uri:
            expand(uri)
    find_local_model(recipe.model.source)
    open_store(recipe).check_writable()
