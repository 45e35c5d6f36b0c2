"""SHA-256 of a checkpoint's files, each of which one rank reads."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from alignflow.training.collectives import from_all_ranks, num_ranks, rank


def hash_together(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file below a folder, by its path there.

    Called by all ranks when the files are written, and gives all of them the same.
    """
    found = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    # Of one rank: another one's view of a shared folder may lag behind.
    return _hash_shares(folder, from_all_ranks(found)[0])


def find_damage(folder: Path, digests: Mapping[str, str]) -> str | None:
    """Return in a few words which file isn't as it was written, or None; the same on all ranks."""
    found = _hash_shares(folder, sorted(digests))
    for name, digest in digests.items():
        if found[name] != digest:
            return f"{name} has changed" if found[name] else f"{name} is missing"
    return None


def _hash_shares(folder: Path, names: Sequence[str]) -> dict[str, str]:
    mine = {name: _digest(folder / name) for name in names[rank() :: num_ranks()]}
    return {name: digest for part in from_all_ranks(mine) for name, digest in part.items()}


def _digest(path: Path) -> str:
    """Return the SHA-256 of a file, empty where there is none."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return ""
