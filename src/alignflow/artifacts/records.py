"""The records of a store: which artifact stands under which key, and for how long unused."""

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pydantic import ValidationError

from alignflow.artifacts.backend import Backend
from alignflow.artifacts.manifest import MANIFEST_NAME, Manifest, ParentRef
from alignflow.errors import CorruptArtifactError

_READERS = 8


@dataclass(frozen=True)
class Record:
    """What the store holds under a key."""

    manifest: Manifest
    unused_s: float
    """Seconds since a stage with the key last computed or found it."""


class _BusyError(Exception):
    """Somebody holds the lock of a key."""


class Records:
    """The key records of a store; every method raises StoreError where it can't be reached."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def note_use(self, key: str) -> None:
        """Record that a stage with this key is wanted: from now on it counts as unused."""
        self._backend.touch(_name(key))

    def read(self) -> list[Record]:
        """Return the record of every key; a damaged one is left out."""
        return [Record(manifest, age_s) for manifest, age_s in self._manifests("keys")]

    def latest(self) -> list[ParentRef]:
        """Return what is recorded as the latest one under any name."""
        return [manifest.ref for manifest, _ in self._manifests("latest")]

    def without_key(self, records: Sequence[Record]) -> list[Manifest]:
        """Return the artifacts to which no key leads: theirs was computed again otherwise."""
        named = {record.manifest.digest for record in records}
        digests = [digest for digest in self._backend.digests("") if digest not in named]
        names = [f"artifacts/{digest}/{MANIFEST_NAME}" for digest in digests]
        return [manifest for _, manifest in self._parsed(names)]

    def forget(self, key: str, *, unused_s: float) -> bool:
        """Remove the record of a key; False where somebody works on it or has just wanted it.

        Args:
            key: The stage key.
            unused_s: Seconds for which nobody may have wanted it.
        """
        name = _name(key)
        lock = self._backend.lock(key)
        try:
            lock.acquire(_raise_busy)
        except _BusyError:
            return False
        try:
            if self._backend.ages("keys").get(name.partition("/")[2], 0.0) < unused_s:
                return False
            self._backend.remove(name)
            return True
        finally:
            lock.release()

    def discard(self, digest: str, records: Sequence[Record]) -> bool:
        """Remove an artifact to which no key leads; False where one has come to lead to it.

        Args:
            digest: Name of the artifact.
            records: Those that stood when it was chosen, none of them with this digest, and of
                which some may be gone.
        """
        known = {f"{record.manifest.key}.json" for record in records}

        def is_wanted() -> bool:
            names = [f"keys/{name}" for name in self._backend.ages("keys") if name not in known]
            return any(manifest.digest == digest for _, manifest in self._parsed(names))

        return self._backend.remove_artifact(digest, is_wanted)

    def _manifests(self, folder: str) -> Iterator[tuple[Manifest, float]]:
        ages = {f"{folder}/{name}": age_s for name, age_s in self._backend.ages(folder).items()}
        for name, manifest in self._parsed(list(ages)):
            yield manifest, ages[name]

    def _parsed(self, names: Sequence[str]) -> Iterator[tuple[str, Manifest]]:
        """Yield the sound manifests among these files, each with its name."""
        with ThreadPoolExecutor(_READERS) as pool:
            for name, content in zip(names, pool.map(self._backend.read, names), strict=True):
                if content is not None:
                    with contextlib.suppress(CorruptArtifactError):
                        yield name, parse_manifest(content, name)


def parse_manifest(content: bytes, name: str) -> Manifest:
    """Return a manifest.

    Args:
        content: Of the file.
        name: What an error calls it.

    Raises:
        CorruptArtifactError: It is damaged.
    """
    try:
        return Manifest.model_validate_json(content)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]["msg"]
        raise CorruptArtifactError(f"{name} has a damaged manifest ({problem}).") from None


def _name(key: str) -> str:
    return f"keys/{key}.json"


def _raise_busy(holder: str) -> None:
    raise _BusyError(holder)
