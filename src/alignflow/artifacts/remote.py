"""An artifact store in an S3 bucket.

Each object carries the SHA-256 of its content as metadata, so that one HEAD request tells whether
it still is what was published; whoever overwrites the object loses the metadata. The bytes
themselves are hashed when they are fetched.
"""

import functools
import shutil
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alignflow import s3
from alignflow.artifacts import files
from alignflow.artifacts.manifest import MANIFEST_NAME, FileEntry, Manifest
from alignflow.errors import CorruptArtifactError, StoreError
from alignflow.locks import LeaseLock, describe_this_process

_STALE_AFTER_S = 24 * 3600.0


class S3Backend:
    """Artifacts as prefixes of a bucket; a publish ends with the manifest.

    Args:
        root: Bucket and prefix of the store.
        stale_after_s: Seconds after which an upload that has not ended counts as given up.
    """

    def __init__(self, root: s3.S3Path, *, stale_after_s: float = _STALE_AFTER_S) -> None:
        self._root = root
        self._stale_after_s = stale_after_s

    def uri(self, digest: str) -> str:
        """Return the URL of an artifact's prefix."""
        return str(self._prefix(digest))

    def read(self, name: str) -> bytes | None:
        """Return the content of a small object of the store, or None where there is none."""
        path = self._root / name
        with s3.translated(StoreError, "read", path):
            return s3.read_bytes(path)

    def write(self, name: str, content: bytes) -> None:
        """Write a small object of the store."""
        path = self._root / name
        with s3.translated(StoreError, "write", path):
            s3.write_bytes(path, content)

    def digests(self, prefix: str) -> list[str]:
        """Return the digests of the artifacts, complete or not, whose digest starts so."""
        path = self._root / f"artifacts/{prefix}"
        with s3.translated(StoreError, "list", path):
            return s3.list_folders(path)

    def find_damage(self, manifest: Manifest) -> str | None:
        """Return in a few words what is wrong with the objects of an artifact, or None."""
        prefix = self._prefix(manifest.digest)
        with s3.translated(StoreError, "read", prefix):
            return next(filter(None, s3.run_parallel(_checks(prefix, manifest.files))), None)

    @contextmanager
    def staged(self, folder: Path, *, copy: bool) -> Iterator[Path]:
        """Return the folder itself: objects are copies, and none is visible before the manifest."""
        files.list_files(folder)
        yield folder

    def commit(self, staged: Path, manifest: Manifest) -> None:
        """Upload what is not there yet, then the manifest, which is the commit."""
        prefix = self._prefix(manifest.digest)
        with s3.translated(StoreError, "write", prefix):
            self._remove_stale()
            self._upload(staged, prefix, manifest)

    def fetch(self, manifest: Manifest, cache_dir: Path) -> Path:
        """Return a folder of the cache with the artifact's files, downloaded where needed."""
        with files.os_errors_as(StoreError, f"write to the cache {cache_dir}"):
            target = cache_dir.absolute() / manifest.digest
            if target.exists():
                if not files.find_damage(target, manifest.files):
                    return target
                shutil.rmtree(target)
            with files.staging_folder(cache_dir.absolute() / "tmp") as work:
                self._download(manifest, work)
                self._put_in_place(work, target, manifest)
            return target

    def check_writable(self) -> None:
        """Write an object and remove it again.

        Raises:
            StoreError: That isn't possible.
        """
        probe = self._root / "tmp/probe"
        with s3.translated(StoreError, "write", probe):
            s3.write_bytes(probe, b"probe")
            s3.delete(probe)

    def lock(self, key: str) -> LeaseLock:
        """Return the lock of a stage key."""
        return LeaseLock(self._root / f"locks/{key}.json")

    def ages(self, folder: str) -> dict[str, float]:
        """Return the small objects of a prefix, each with the seconds since it was written."""
        path = self._root / f"{folder}/"
        with s3.translated(StoreError, "list", path):
            return s3.ages(path)

    def touch(self, name: str) -> None:
        """Make a small object, if it is there, as young as one just written."""
        content = self.read(name)
        if content is not None:
            self.write(name, content)

    def remove(self, name: str) -> None:
        """Remove a small object, if it is there."""
        path = self._root / name
        with s3.translated(StoreError, "delete", path):
            s3.delete(path)

    def remove_artifact(self, digest: str, is_wanted: Callable[[], bool]) -> bool:
        """Take an artifact out of sight, then put it back if it is wanted, or remove its files."""
        prefix = self._prefix(digest)
        with s3.translated(StoreError, "delete", prefix):
            manifest = s3.read_bytes(prefix / MANIFEST_NAME)
            if manifest is None:
                return False
            s3.delete(prefix / MANIFEST_NAME)
            if is_wanted():
                s3.write_bytes(prefix / MANIFEST_NAME, manifest)
                return False
            for leftover in s3.list_objects(prefix / ""):
                s3.delete(leftover.path)
            return True

    def _prefix(self, digest: str) -> s3.S3Path:
        return self._root / f"artifacts/{digest}"

    def _upload(self, staged: Path, prefix: s3.S3Path, manifest: Manifest) -> None:
        marker = self._root / f"tmp/{manifest.digest}"
        s3.write_bytes(marker, describe_this_process().encode())
        there = s3.run_parallel(_checks(prefix, manifest.files))
        s3.run_parallel(
            functools.partial(
                s3.upload,
                source=staged / entry.path,
                path=prefix / entry.path,
                metadata={"sha256": entry.sha256},
            )
            for entry, damage in zip(manifest.files, there, strict=True)
            if damage
        )
        if damage := self.find_damage(manifest):
            raise CorruptArtifactError(
                f"{prefix}: the upload is not complete: {damage}; did {staged} change meanwhile?"
            )
        s3.write_bytes(prefix / MANIFEST_NAME, manifest.to_json())
        s3.delete(marker)

    def _download(self, manifest: Manifest, folder: Path) -> None:
        prefix = self._prefix(manifest.digest)
        downloads = [
            functools.partial(
                s3.download,
                path=prefix / entry.path,
                target=folder / entry.path,
                size=entry.size,
            )
            for entry in manifest.files
        ]
        damage = None
        with s3.translated(StoreError, "read", prefix):
            try:
                s3.run_parallel(downloads)
            except Exception as error:
                if s3.error_code(error) not in ("NoSuchKey", "InvalidRange"):
                    raise
                damage = "a file is missing or too short; run again to compute it anew"
        if damage is None and (changed := files.find_damage(folder, manifest.files)):
            damage = f"{changed}; delete that object and run again to compute it anew"
        if damage:
            raise CorruptArtifactError(f"{prefix}: the artifact is damaged: {damage}.")

    def _put_in_place(self, work: Path, target: Path, manifest: Manifest) -> None:
        try:
            work.rename(target)
        except OSError:
            # Another process has put the same artifact there meanwhile.
            if files.find_damage(target, manifest.files):
                raise
        files.remember_verified(target, manifest.files)

    def _remove_stale(self) -> None:
        """Remove what publishers that were killed have uploaded, a day after they began."""
        for marker in s3.list_objects(self._root / "tmp/"):
            began = s3.head(marker.path)
            if began is None or s3.age_s(began) < self._stale_after_s:
                continue
            prefix = self._prefix(marker.path.key.rpartition("/")[2])
            s3.abort_uploads(prefix / "")
            if s3.head(prefix / MANIFEST_NAME) is None:
                for leftover in s3.list_objects(prefix / ""):
                    s3.delete(leftover.path)
            s3.delete(marker.path)


def _checks(
    prefix: s3.S3Path, entries: Sequence[FileEntry]
) -> list[Callable[[Any], Awaitable[str | None]]]:
    """Return a call for each file that says what is wrong with its object, or None."""

    async def check(fs: Any, entry: FileEntry) -> str | None:
        try:
            answer = await fs._call_s3("head_object", **(prefix / entry.path).target)
        except FileNotFoundError:
            return f"{entry.path} is missing"
        if answer["ContentLength"] != entry.size:
            return f"{entry.path} has {answer['ContentLength']} bytes instead of {entry.size}"
        if answer["Metadata"].get("sha256") != entry.sha256:
            return f"{entry.path} was overwritten"
        return None

    return [functools.partial(check, entry=entry) for entry in entries]
