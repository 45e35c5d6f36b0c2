"""The artifact store: immutable folders, named by their content, found by what determines them.

    artifacts/<digest>/…        the files, and manifest.json, which is the commit
    keys/<key>.json             the manifest of the stage with that key
    latest/<name>.json          the manifest of what was last recorded under the name
    locks/                      one a key, see `alignflow.locks`
    tmp/                        half-done work; what a killed process leaves is removed later

Two keys may lead to the same digest with other parents, hence the manifest under each key.
"""

import contextlib
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from alignflow.artifacts.backend import Backend
from alignflow.artifacts.files import hash_files, list_files
from alignflow.artifacts.local import LocalBackend
from alignflow.artifacts.manifest import MANIFEST_NAME, Manifest, ParentRef, files_digest
from alignflow.artifacts.notes import Notes
from alignflow.artifacts.records import Records, parse_manifest
from alignflow.artifacts.remote import S3Backend
from alignflow.errors import CorruptArtifactError, DataError, StoreError
from alignflow.locks import OnWait
from alignflow.s3 import S3Path

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Artifact:
    """An artifact of a store; its files are had by `ArtifactStore.fetch`."""

    manifest: Manifest
    uri: str
    """URL of its folder in the store."""

    @property
    def digest(self) -> str:
        """Return the content digest, which is its name."""
        return self.manifest.digest

    @property
    def key(self) -> str:
        """Return the key of the stage that made it."""
        return self.manifest.key

    @property
    def kind(self) -> str:
        """Return the stage that made it."""
        return self.manifest.kind

    @property
    def ref(self) -> ParentRef:
        """Return how a child's manifest names it."""
        return self.manifest.ref


class ArtifactStore:
    """Artifacts in a folder or an S3 bucket.

    Args:
        url: A path, `file://…`, or `s3://bucket/prefix` with credentials and endpoint from the
            environment. Nothing is read or written before the first call.

    Attributes:
        records: What stands under each key and name.
        notes: Small texts beside the artifacts.

    Raises:
        ConfigError: The URL can't be read.
        StoreError: The URL is of a kind that is not supported.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._backend = _open_backend(url)
        self.records = Records(self._backend)
        self.notes = Notes(self._backend)

    def find(self, key: str) -> Artifact | None:
        """Return what the stage with this key has made, or None where it must be computed.

        An artifact that is damaged counts as not there, so that it is computed and published anew.
        On a folder every byte is verified, on S3 each object's size and recorded SHA-256.

        Raises:
            StoreError: The store can't be read.
        """
        content = self._backend.read(f"keys/{_checked(key)}.json")
        if content is None:
            return None
        try:
            manifest = parse_manifest(content, f"the record of key {key[:12]}")
            self._verify(manifest.digest)
        except CorruptArtifactError as error:
            _logger.warning("%s It is computed again.", error)
            return None
        return self._artifact(manifest)

    def manifest_of(self, ref: ParentRef) -> Manifest | None:
        """Return the manifest of an ancestor without a look at its files, or None if it is gone.

        Raises:
            StoreError: The store can't be read.
            CorruptArtifactError: The manifest is damaged.
        """
        content = self._backend.read(f"keys/{ref.key}.json")
        with contextlib.suppress(CorruptArtifactError):
            if content and (manifest := parse_manifest(content, "the record")).digest == ref.digest:
                return manifest
        # The key was computed again, with another outcome: the artifact itself still knows.
        content = self._backend.read(f"artifacts/{ref.digest}/{MANIFEST_NAME}")
        return None if content is None else parse_manifest(content, f"artifact {ref.digest[:12]}")

    def get(self, digest: str) -> Artifact:
        """Return the artifact with this digest, or with the only digest that starts so.

        Raises:
            StoreError: There is none, or more than one, or the store can't be read.
            CorruptArtifactError: It is damaged.
        """
        if not re.fullmatch(r"[0-9a-f]{4,64}", digest):
            raise StoreError(
                f"{digest!r} is no digest of an artifact; give at least its first 4 hexadecimal "
                "digits."
            )
        found = [d for d in self._backend.digests(digest) if self._is_committed(d)]
        if not found:
            raise StoreError(f"there is no artifact {digest} in {self.url}; check the digest.")
        if len(found) > 1:
            shown = ", ".join(d[:12] for d in found[:5])
            raise StoreError(f"{digest} fits {len(found)} artifacts ({shown}); give more digits.")
        return self._artifact(self._verify(found[0]))

    def publish(
        self,
        folder: Path,
        *,
        kind: str,
        key: str,
        code_version: str,
        parents: Mapping[str, ParentRef] | None = None,
        config: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None,
        details: Mapping[str, Any] | None = None,
        tokenizer: str | None = None,
        chat_template: str | None = None,
        copy: bool = False,
    ) -> Artifact:
        """Put the files of a folder into the store and record them under the key.

        It is all or nothing: before the commit nobody sees the artifact, and after it everybody
        sees all of it. Publishing the same files again is cheap; a damaged artifact is replaced.

        Args:
            folder: Regular files only. In a store on the same file system they get a second name
                instead of a copy and become read-only, so that a file must not be written to in
                place afterwards; replacing or removing it is fine.
            kind: Stage that made the files.
            key: `stage_key` of the stage.
            code_version: As it went into the key.
            parents: By role.
            config: Resolved config of the stage, JSON types only, without secrets.
            metrics: Finite numbers.
            details: JSON types only; `sources` is a list of {uri, sha256, bytes}.
            tokenizer: Its fingerprint.
            chat_template: Its fingerprint.
            copy: Copy the files: for a folder that belongs to somebody else.

        Raises:
            DataError: The folder is empty, or holds a link or the name manifest.json.
            StoreError: The store can't be written to, or is full.
        """
        _check_publishable(folder)
        with self._backend.staged(folder, copy=copy) as staged:
            files = hash_files(staged, list_files(staged))
            manifest = Manifest(
                kind=kind,
                digest=files_digest(files),
                key=_checked(key),
                files=files,
                parents=dict(parents or {}),
                tokenizer=tokenizer,
                chat_template=chat_template,
                metrics=dict(metrics or {}),
                details=dict(details or {}),
                config=dict(config or {}),
                code_version=code_version,
                created=datetime.now(UTC),
            )
            self._backend.commit(staged, manifest)
            self._backend.write(f"keys/{key}.json", manifest.to_json())
            if not self._is_committed(manifest.digest):
                # The same files were there, were needed by nobody, and went before the record came.
                self._backend.commit(staged, manifest)
        return self._artifact(manifest)

    def latest(self, name: str) -> Artifact | None:
        """Return the artifact that was last recorded under a name, without a look at its files.

        Raises:
            StoreError: The store can't be read.
            CorruptArtifactError: The record is damaged.
        """
        content = self._backend.read(f"latest/{name}.json")
        if content is None:
            return None
        return self._artifact(parse_manifest(content, f"the latest {name}"))

    def record_latest(self, name: str, artifact: Artifact) -> None:
        """Record an artifact as the latest one under a name.

        Raises:
            StoreError: The store can't be written to.
        """
        self._backend.write(f"latest/{name}.json", artifact.manifest.to_json())

    def fetch(self, artifact: Artifact, cache_dir: Path) -> Path:
        """Return a local folder with the artifact's files; read them, never write there.

        It is the artifact's own folder in a local store, and a folder of `cache_dir` for S3. Every
        byte is verified, once per process.

        Raises:
            CorruptArtifactError: A file differs from the manifest.
            StoreError: The store can't be read.
        """
        return self._backend.fetch(artifact.manifest, cache_dir)

    def check_writable(self) -> None:
        """Write something and remove it, so that a run fails before it has computed anything.

        Raises:
            StoreError: Read-only, no such bucket, wrong credentials, no connection.
        """
        self._backend.check_writable()

    @contextmanager
    def lock(self, key: str, on_wait: OnWait | None = None) -> Iterator[None]:
        """Hold the lock of a key, so that two runs that want it at once compute it once.

        Args:
            key: The stage key.
            on_wait: Called at every look while another run holds the lock, with a few words on who
                it is; what it raises ends the wait.

        Raises:
            StoreError: The store can't be written to.
        """
        lock = self._backend.lock(_checked(key))
        lock.acquire(on_wait)
        try:
            yield
        finally:
            lock.release()

    def _artifact(self, manifest: Manifest) -> Artifact:
        return Artifact(manifest, self._backend.uri(manifest.digest))

    def _is_committed(self, digest: str) -> bool:
        return self._backend.read(f"artifacts/{digest}/{MANIFEST_NAME}") is not None

    def _verify(self, digest: str) -> Manifest:
        """Return the manifest in the artifact's folder, if its files agree with it."""
        name = f"artifact {digest[:12]}"
        content = self._backend.read(f"artifacts/{digest}/{MANIFEST_NAME}")
        if content is None:
            raise CorruptArtifactError(f"{name} in {self.url} is gone.")
        manifest = parse_manifest(content, name)
        if manifest.digest != digest:
            damage: str | None = f"its manifest is that of {manifest.digest[:12]}"
        else:
            damage = self._backend.find_damage(manifest)
        if damage:
            raise CorruptArtifactError(f"{name} in {self.url} is damaged: {damage}.")
        return manifest


def _open_backend(url: str) -> Backend:
    scheme, separator, rest = url.partition("://")
    if not separator:
        return LocalBackend(Path(url))
    if scheme == "file":
        return LocalBackend(Path(rest))
    if scheme == "s3":
        return S3Backend(S3Path.parse(url))
    raise StoreError(f"a store can't be at {scheme}://; give a path, file:// or s3:// URL.")


def _checked(key: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}", key):
        raise ValueError(f"{key!r} is no stage key")
    return key


def _check_publishable(folder: Path) -> None:
    paths = list_files(folder)
    if not paths:
        raise DataError(f"{folder.absolute()}: the folder holds no files; there is no artifact.")
    if MANIFEST_NAME in paths:
        raise DataError(
            f"{folder / MANIFEST_NAME}: this name belongs to the artifact; rename the file."
        )
