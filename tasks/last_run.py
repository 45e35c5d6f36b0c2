"""What the last run of a recipe that came to a verdict was made from, to tell what is new.

Not just the last run: one that failed on new data has to be made up for.
"""

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from alignflow.artifacts import Artifact, canonical_json
from alignflow.config import Config
from alignflow.data_validation.config import DatasetConfig
from alignflow.landing import content_digest
from alignflow.tasks.config import RunConfig
from alignflow.tasks.data import source_identities
from alignflow.tasks.pipeline import Pipeline
from alignflow.tasks.preflight import open_store

# None of them changes what is trained.
_ELSEWHERE = ("workspace", "store", "cluster", "row_checks")
_SHA256_CHARS = 64


class LastRun(Config):
    """A run that came to a verdict."""

    run: str
    at: datetime
    recipe: str
    """Hash of all that the recipe says besides where things lie and run."""
    sets: Mapping[str, tuple[str, ...]]
    """Of each training set what its sources held: a SHA-256 a file, a commit a set of the hub."""

    @property
    def preferences(self) -> str:
        """Return the digest of the preference files, as `landing.content_digest` makes it."""
        held = self.sets.get("preferences", ())
        return content_digest(each for each in held if len(each) == _SHA256_CHARS)


def note_last_run(pipeline: Pipeline, datasets: Mapping[str, Artifact]) -> None:
    """Keep what a run was made from, now that it has its verdict.

    Raises:
        StoreError: The store can't be written.
    """
    sets = {name: _held(artifact.manifest.config["sources"]) for name, artifact in datasets.items()}
    last = LastRun(
        run=pipeline.run_id, at=datetime.now(UTC), recipe=_hash_of(pipeline.recipe), sets=sets
    )
    content = last.model_dump_json(indent=2).encode()
    pipeline.store.notes.write(_name(pipeline.recipe), content)


def read_last_run(recipe: RunConfig) -> LastRun | None:
    """Return the recipe's last run that came to a verdict; None where there is none.

    Raises:
        StoreError: The store can't be read.
    """
    content = open_store(recipe).notes.read(_name(recipe))
    try:
        return None if content is None else LastRun.model_validate_json(content)
    except ValidationError:
        # As if there had been none: it is written anew by the run that follows from this.
        return None


def what_changed(recipe: RunConfig, last: LastRun) -> list[str]:
    """Name the training sets that hold something else than in the last run, and `recipe`.

    Raises:
        DataError: A source can't be read.
    """
    cache = Path(recipe.workspace).absolute() / "cache"
    changed = [
        name
        for name, config in recipe.data.sets.items()
        if _held_now(config, cache) != tuple(last.sets.get(name, ()))
    ]
    return [*changed, *(["recipe"] if _hash_of(recipe) != last.recipe else [])]


def _held_now(config: DatasetConfig, cache: Path) -> tuple[str, ...]:
    return _held(source_identities(config, cache, read_again=False))


def _held(identities: list[dict[str, str]]) -> tuple[str, ...]:
    """Return what names the content of a set, whatever its files are called."""
    return tuple(
        sorted(
            {
                each["sha256"] if "sha256" in each else f"{each['uri']} {each['commit']}"
                for each in identities
            }
        )
    )


def _hash_of(recipe: RunConfig) -> str:
    said = recipe.model_dump(mode="json", exclude=set(_ELSEWHERE))
    for config in said["data"].values():
        if isinstance(config, dict):
            config.pop("sources", None)
    return hashlib.sha256(canonical_json(said)).hexdigest()


def _name(recipe: RunConfig) -> str:
    return f"last-run/{recipe.name}.json"
