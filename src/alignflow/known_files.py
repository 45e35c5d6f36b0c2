"""Digests of files that were read before: what nobody has changed isn't read again to be named.

A file is told by its state: on a disk its size, inode and times of change, on S3 its entity tag.
The kernel sets the time of an inode's change with every write, and nobody can set it back.
"""

import hashlib
import time
from pathlib import Path

from alignflow.artifacts.files import write_atomically

_YOUNG_S = 2.0
"""A second write this soon after the first may leave the times of a coarse clock as they are."""


def disk_state(path: Path) -> str | None:
    """Return the state of a file on a disk; None where it changed too lately to be told by it."""
    status = path.stat()
    if time.time() - max(status.st_mtime, status.st_ctime) < _YOUNG_S:
        return None
    times = f"{status.st_mtime_ns} {status.st_ctime_ns}"
    return f"{status.st_size} {status.st_dev}:{status.st_ino} {times}"


class KnownFiles:
    """What is remembered in a cache folder; deleting its folder `known` forgets all of it."""

    def __init__(self, cache_dir: Path) -> None:
        self._cache_dir = cache_dir.absolute()

    def find(self, uri: str, state: str) -> str | None:
        """Return the SHA-256 of a file that was read in this state, or None."""
        try:
            return self._record(uri, state).read_text(encoding="ascii")
        except FileNotFoundError:
            return None

    def remember(self, uri: str, state: str, sha256: str) -> None:
        """Note what was read."""
        record = self._record(uri, state)
        write_atomically(record, sha256.encode(), self._cache_dir / "tmp")

    def _record(self, uri: str, state: str) -> Path:
        name = hashlib.sha256(f"{uri}\n{state}".encode()).hexdigest()
        return self._cache_dir / "known" / name
