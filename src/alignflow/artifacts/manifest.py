"""What an artifact is: its manifest, its content digest and the key that determines it."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, AwareDatetime, Field, NonNegativeInt, model_validator

from alignflow import __version__
from alignflow.config import Config

MANIFEST_NAME = "manifest.json"

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def _stays_in_its_folder(path: str) -> str:
    parts = PurePosixPath(path).parts
    if not parts or parts[0] == "/" or ".." in parts or "\0" in path:
        raise ValueError(f"the path {path!r} leaves the artifact's folder")
    if path != "/".join(parts):
        raise ValueError(f"the path {path!r} is not in its plain form")
    return path


class FileEntry(Config):
    """One file of an artifact."""

    path: Annotated[str, AfterValidator(_stays_in_its_folder)]
    """Relative to the artifact's folder, with `/` between parts."""
    size: NonNegativeInt
    """Bytes."""
    sha256: Sha256


class ParentRef(Config):
    """An artifact that another one was made from."""

    kind: str
    digest: Sha256
    key: Sha256


class Manifest(Config):
    """Content of `manifest.json`: what the artifact holds, what it was made from, and how."""

    format: Literal[1] = 1
    """Version of this layout."""
    kind: str
    """Stage that made it, such as `dataset`, `sft` or `evaluation`."""
    digest: Sha256
    """Name of the artifact: `files_digest` of its files."""
    key: Sha256
    """What determines it: `stage_key` of its stage."""
    files: tuple[FileEntry, ...]
    """Sorted by path."""
    parents: dict[str, ParentRef] = {}
    """By role, such as `data` or `policy`."""
    tokenizer: str | None = None
    """Fingerprint of the tokenizer; None where the artifact holds none."""
    chat_template: str | None = None
    """Fingerprint of the chat template; None where the artifact holds none."""
    metrics: dict[str, float] = {}
    """Last value of each quantity, named `stage/quantity`."""
    details: dict[str, Any] = {}
    """Facts for the report; a dataset's `sources` stand here."""
    config: dict[str, Any] = {}
    """Resolved config of the stage; holds no secret."""
    code_version: str
    """As it went into the key."""
    created: AwareDatetime
    """UTC."""

    @model_validator(mode="after")
    def _digest_fits_files(self) -> Self:
        paths = [entry.path for entry in self.files]
        if paths != sorted(set(paths)):
            raise ValueError("files must be sorted by path, each once")
        if self.digest != files_digest(self.files):
            raise ValueError("the digest is not that of the files")
        return self

    @property
    def ref(self) -> ParentRef:
        """Return how a child's manifest names this artifact."""
        return ParentRef(kind=self.kind, digest=self.digest, key=self.key)

    @property
    def size(self) -> int:
        """Return the bytes of all files together."""
        return sum(entry.size for entry in self.files)

    def to_json(self) -> bytes:
        """Return the content of `manifest.json`."""
        return self.model_dump_json(indent=2).encode() + b"\n"


def files_digest(files: Iterable[FileEntry]) -> str:
    """SHA-256 over the file list, sorted by path: path, size and SHA-256 of each."""
    rows = sorted([entry.path, entry.size, entry.sha256] for entry in files)
    return hashlib.sha256(canonical_json(rows)).hexdigest()


def stage_key(
    kind: str, config: Mapping[str, Any], parents: Mapping[str, ParentRef], code_version: str
) -> str:
    """SHA-256 over all that determines an artifact: stage, config, parents' digests and code.

    Parents count by digest and not by key: one that was computed again with the same outcome
    leaves its children as they are.

    Args:
        kind: Kind of the stage.
        config: Resolved config of the stage, JSON types only.
        parents: By role.
        code_version: `code_version` of the stage.

    Raises:
        ValueError: The config holds what JSON can't, such as NaN.
        TypeError: The config holds an object that JSON has no type for.
    """
    determines = {
        "kind": kind,
        "config": dict(config),
        "parents": {role: parent.digest for role, parent in parents.items()},
        "code_version": code_version,
    }
    return hashlib.sha256(canonical_json(determines)).hexdigest()


def code_version(revision: int) -> str:
    """Return the version of a stage's code, as it goes into the stage's key.

    It is the minor version of the package and a revision that stands as a constant beside the
    stage. Hashing the source instead would compute everything again for a changed comment, the
    whole version for every patch release; so a commit that changes what a stage computes raises
    that stage's revision, and only that stage and those after it run again.
    """
    minor = ".".join(__version__.split(".")[:2])
    return f"{minor}-r{revision}"


def canonical_json(value: object) -> bytes:
    """Return JSON with sorted keys and no spaces: equal values give equal bytes."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()
