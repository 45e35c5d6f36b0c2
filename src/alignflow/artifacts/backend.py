"""What a store needs of the place it is in."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from alignflow.artifacts.manifest import Manifest
from alignflow.locks import Lock


class Backend(Protocol):
    """A folder or a bucket; every error is a StoreError."""

    def uri(self, digest: str) -> str:
        """Return the URL of an artifact's folder."""

    def read(self, name: str) -> bytes | None:
        """Return the content of a small file, or None where there is none."""

    def write(self, name: str, content: bytes) -> None:
        """Write a small file atomically."""

    def digests(self, prefix: str) -> list[str]:
        """Return the digests, committed or not, that start so."""

    def find_damage(self, manifest: Manifest) -> str | None:
        """Return in a few words what is wrong with an artifact's files, or None."""

    def staged(self, folder: Path, *, copy: bool) -> AbstractContextManager[Path]:
        """Give the files of a folder a place from which they can be committed."""

    def commit(self, staged: Path, manifest: Manifest) -> None:
        """Make the staged files visible as an artifact, all or nothing."""

    def fetch(self, manifest: Manifest, cache_dir: Path) -> Path:
        """Return a local folder with the verified files."""

    def check_writable(self) -> None:
        """Raise StoreError where the store can't be written to."""

    def lock(self, key: str) -> Lock:
        """Return the lock of a stage key."""

    def ages(self, folder: str) -> dict[str, float]:
        """Return the small files of a folder, each with the seconds since it was written."""

    def touch(self, name: str) -> None:
        """Make a small file, if it is there, as young as one just written."""

    def remove(self, name: str) -> None:
        """Remove a small file, if it is there."""

    def remove_artifact(self, digest: str, is_wanted: Callable[[], bool]) -> bool:
        """Take an artifact out of sight, then put it back if it is wanted, or remove its files."""
