"""Starting the pipeline of a deployed recipe, once for each reason to."""

from collections.abc import Sequence
from pathlib import Path

from prefect import runtime
from prefect.exceptions import ObjectNotFound

from alignflow.errors import ConfigError, DataError
from alignflow.landing import content_digest, read_digests, seen_files
from alignflow.tasks.config import RunConfig
from alignflow.tasks.data_versions import (
    DataVersion,
    DataVersions,
    VersionFile,
    hub_sources,
    new_version,
    pinned,
)
from alignflow.tasks.last_run import read_last_run, what_changed
from alignflow.tasks.logs import run_logger
from alignflow.tasks.prefect_api import prefect_client

PIPELINE = "align"
"""Flow of the deployments that run a recipe, which are named after it."""


def start_pipeline(recipe: RunConfig, *, key: str, tags: Sequence[str]) -> str:
    """Have a worker run a recipe, and return the id of the flow run.

    Args:
        recipe: Complete; its paths hold on the workers' machines.
        key: The same key starts one run, whoever asks and how often.
        tags: Of the flow run.

    Raises:
        ConfigError: The recipe isn't deployed.
        PrefectError: The server refused.
    """
    name = f"{PIPELINE}/{recipe.name}"
    with prefect_client() as client:
        try:
            deployment = client.read_deployment_by_name(name)
        except ObjectNotFound:
            raise ConfigError(
                f"Prefect has no deployment {name}; make it by alignflow deploy --recipe RECIPE."
            ) from None
        flow_run = client.create_flow_run_from_deployment(
            deployment.id,
            parameters={"recipe": recipe.model_dump(mode="json")},
            idempotency_key=key,
            tags=list(tags),
        )
    return str(flow_run.id)


def landing_key(recipe: RunConfig, digest: str) -> str:
    """Return the key of the one run that a recipe has on preferences of this content."""
    return f"alignflow {recipe.name} {digest}"


def start_on_landed(recipe: RunConfig, digest: str, source: str | None) -> str:
    """Start the pipeline on preferences that have landed, and say which run that is.

    Args:
        recipe: As it is deployed.
        digest: Of the content.
        source: Where it lies, for a version that no watch has recorded.

    Raises:
        DataError: What lies there isn't what the digest says, or nobody recorded it.
        ConfigError: The recipe isn't deployed.
    """
    versions = DataVersions(recipe)
    version = versions.read(digest)
    if version is not None and version.flow_run is not None:
        return _said(f"preferences {version.short} have had their run: {version.flow_run}")
    if version is None:
        version = _looked_at(recipe, digest, source)
    flow_run = start_pipeline(
        pinned(recipe, version), key=landing_key(recipe, digest), tags=[f"data:{version.short}"]
    )
    versions.write(version.replaced(flow_run=flow_run))
    return _said(f"preferences {version.short} are run on by {flow_run}")


def start_if_changed(recipe: RunConfig, *, even_if_unchanged: bool) -> tuple[bool, str]:
    """Start the pipeline unless nothing changed since its last run with a verdict.

    Called by a flow run, whose retries start no second one.

    Returns:
        Whether it was started, and a sentence on why, or why not.

    Raises:
        DataError: A source can't be read.
        ConfigError: The recipe isn't deployed.
    """
    last = read_last_run(recipe)
    if last is None:
        why = "no run has come to a verdict yet"
    else:
        changed = what_changed(recipe, last)
        since = f"since run {last.run} ({last.at:%Y-%m-%d %H:%M} UTC)"
        if not changed and not even_if_unchanged:
            sets = ", ".join(recipe.data.sets)
            return False, _said(f"nothing changed in {sets} or the recipe {since}: no run")
        why = f"{', '.join(changed) or 'nothing'} changed {since}"
    key = f"alignflow {recipe.name} scheduled by {runtime.flow_run.id}"
    flow_run = start_pipeline(recipe, key=key, tags=["scheduled"])
    return True, _said(f"{why}: run {flow_run}")


def cache_of(recipe: RunConfig) -> Path:
    """Return the folder of local copies in a recipe's workspace."""
    return Path(recipe.workspace).absolute() / "cache"


def watched_sources(recipe: RunConfig, also: Sequence[str] = ()) -> list[str]:
    """Return where a recipe's preferences lie, sets of the hub left out, and others beside them."""
    own = recipe.data.preferences.sources
    at_hub = hub_sources(own)
    return list(dict.fromkeys([*(each for each in own if each not in at_hub), *also]))


def _looked_at(recipe: RunConfig, digest: str, source: str | None) -> DataVersion:
    """Return the version that an event from elsewhere tells of, if it is what lies there."""
    if source is None:
        raise DataError(f"no data version {digest} of {recipe.name} is recorded; name its source.")
    files = seen_files(watched_sources(recipe, [source]))
    digests = read_digests(files, cache_of(recipe))
    if content_digest(digests.values()) != digest:
        raise DataError(
            f"{source}: what lies there isn't {digest[:12]} (any more); alignflow watch tells what "
            "is."
        )
    made = [VersionFile(uri=uri, sha256=sha256) for uri, sha256 in digests.items()]
    return new_version(digest, made)


def _said(sentence: str) -> str:
    run_logger().info(sentence)
    return sentence
