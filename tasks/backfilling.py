"""Backfills: the pipeline on data versions of before, by other methods than then."""

import hashlib
from collections.abc import Sequence

from alignflow.artifacts import canonical_json
from alignflow.errors import InputError
from alignflow.landing import read_digests, seen_files
from alignflow.sources import check_unchanged
from alignflow.tasks.config import RunConfig
from alignflow.tasks.data_versions import DataVersion, DataVersions, pinned
from alignflow.tasks.logs import run_logger
from alignflow.tasks.starting import cache_of, start_pipeline


def find_versions(recipe: RunConfig, starts: Sequence[str] | None) -> list[DataVersion]:
    """Return the data versions whose digests start so, or all; their files are what they were.

    Raises:
        InputError: There is no such version, or several.
        DataError: A file of one is gone, or holds something else by now.
    """
    versions = DataVersions(recipe)
    found = [versions.find(start) for start in starts] if starts else versions.all()
    if not found:
        raise InputError(f"no preferences of {recipe.name} have landed yet: alignflow watch.")
    for version in found:
        files = seen_files([file.uri for file in version.files])
        digests = read_digests(files, cache_of(recipe))
        for file in version.files:
            check_unchanged(file.uri, file.sha256, digests.get(file.uri, "nothing"))
    return found


def start_backfill(recipe: RunConfig, version: DataVersion) -> str:
    """Start a recipe on a data version, and say which run that is.

    The same recipe on the same version has one backfill, however often it is asked for.

    Raises:
        ConfigError: The recipe isn't deployed.
    """
    chosen = pinned(recipe, version)
    content = hashlib.sha256(canonical_json(chosen.model_dump(mode="json"))).hexdigest()
    method = str(getattr(recipe, "method", ""))
    tags = [f"data:{version.short}", f"method:{method}", "backfill"]
    flow_run = start_pipeline(chosen, key=f"alignflow backfill {content}", tags=tags)
    sentence = f"preferences {version.short} by {method}: {flow_run}"
    run_logger().info(sentence)
    return sentence
