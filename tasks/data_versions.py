"""Versions of a recipe's preferences: which files each had, and which run was started on it.

They are notes in the artifact store, so that whoever watches next, on whatever machine, knows them.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from alignflow.artifacts import ArtifactStore
from alignflow.config import Config
from alignflow.data_validation.hub import is_hub_set
from alignflow.errors import CorruptArtifactError, InputError
from alignflow.tasks.config import RunConfig
from alignflow.tasks.preflight import open_store

RecipeT = TypeVar("RecipeT", bound=RunConfig)


class VersionFile(Config):
    """One file of a version."""

    uri: str
    sha256: str


class DataVersion(Config):
    """The preferences of a recipe as they landed."""

    digest: str
    """Of what the files hold, see `landing.content_digest`."""
    files: tuple[VersionFile, ...]
    num_pairs: int | None = None
    """Pairs that pass by themselves; None where nobody counted."""
    num_new_pairs: int | None = None
    """Those of them that the version before did not have."""
    landed_at: datetime
    told: int = 0
    """How often its event was posted."""
    told_at: datetime | None = None
    flow_run: str | None = None
    """The run that was started on it."""

    @property
    def short(self) -> str:
        """Return the digest as it is shown."""
        return self.digest[:12]


class DataVersions:
    """The versions of one recipe, by its name, in its store."""

    def __init__(self, recipe: RunConfig) -> None:
        self._store: ArtifactStore = open_store(recipe)
        self._folder = f"versions/{recipe.name}"

    def read(self, digest: str) -> DataVersion | None:
        """Return a version, or None where there is none.

        Raises:
            StoreError: The store can't be read.
            CorruptArtifactError: Its note is damaged.
        """
        return self._read(f"{self._folder}/{digest}.json")

    def write(self, version: DataVersion) -> DataVersion:
        """Keep a version as it is now, and return it."""
        content = version.model_dump_json(indent=2).encode()
        self._store.notes.write(f"{self._folder}/{version.digest}.json", content)
        return version

    def all(self) -> list[DataVersion]:
        """Return every version, the oldest first."""
        found = [self._read(name) for name in self._store.notes.names(self._folder)]
        return sorted((each for each in found if each), key=lambda version: version.landed_at)

    def find(self, start: str) -> DataVersion:
        """Return the version whose digest starts so.

        Raises:
            InputError: There is none, or more than one.
        """
        found = [version for version in self.all() if version.digest.startswith(start)]
        if len(found) == 1:
            return found[0]
        known = ", ".join(version.short for version in self.all()) or "none"
        what = "no data version starts" if not found else "several data versions start"
        raise InputError(f"{what} with {start!r}; known: {known}.")

    def pairs_of(self, digest: str) -> NDArray[np.uint64]:
        """Return the hashes of a version's pairs, sorted; none where they weren't kept."""
        content = self._store.notes.read(f"{self._folder}/{digest}.pairs")
        return np.frombuffer(content or b"", dtype="<u8").astype(np.uint64)

    def write_pairs(self, digest: str, pairs: NDArray[np.uint64]) -> None:
        """Keep the hashes of a version's pairs."""
        self._store.notes.write(f"{self._folder}/{digest}.pairs", pairs.astype("<u8").tobytes())

    def _read(self, name: str) -> DataVersion | None:
        content = self._store.notes.read(name)
        if content is None:
            return None
        try:
            return DataVersion.model_validate_json(content)
        except ValidationError:
            raise CorruptArtifactError(
                f"the note {name} in {self._store.url} is damaged; remove it to have it made anew."
            ) from None


def new_version(digest: str, files: Sequence[VersionFile]) -> DataVersion:
    """Return a version that lands now."""
    return DataVersion(digest=digest, files=tuple(files), landed_at=datetime.now(UTC))


def pinned(recipe: RecipeT, version: DataVersion) -> RecipeT:
    """Return the recipe with exactly the files of a version as its preferences.

    Sets of the hub that it names beside them stay.
    """
    config = recipe.data.preferences
    sources = [*hub_sources(config.sources), *(file.uri for file in version.files)]
    data = recipe.data.replaced(preferences=config.replaced(sources=sources))
    return recipe.replaced(data=data)


def hub_sources(sources: Sequence[str]) -> list[str]:
    """Return those sources that are sets or files of the hub."""
    return [source for source in sources if source.startswith("hf://") or is_hub_set(source)]
