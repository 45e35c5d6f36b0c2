"""An artifact store in an S3 bucket.

Each object carries the SHA-256 of its content as metadata, so that one HEAD request tells whether
it still is what was published; whoever overwrites the object loses the metadata. The bytes
themselves are hashed when they are fetched.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from alignflow import s3
from alignflow.artifacts import files
from alignflow.artifacts.manifest import MANIFEST_NAME, FileEntry, Manifest
from alignflow.errors import CorruptArtifactError, StoreError
from alignflow.locks import LeaseLock, describe_this_process

# Together they bound the memory of an upload: 4 files, 4 parts of each, 16 MiB a part.
_TRANSFERS = 4
_PARTS = {"chunksize": 16 * 2**20, "max_concurrency": 4}
_STALE_AFTER_S = 24 * 3600.0

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


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
            return next((d for d in _in_parallel(self._differs(prefix), manifest.files) if d), None)

    @contextmanager
    def staged(self, folder: Path, *, copy: bool) -> Iterator[Path]:
        """Return the folder itself: objects are copies, and none is visible before the manifest."""
        files.list_files(folder)
        with s3.translated(StoreError, "write", self._root):
            yield folder

    def commit(self, staged: Path, manifest: Manifest) -> None:
        """Upload what is not there yet, then the manifest, which is the commit."""
        self._remove_stale()
        prefix = self._prefix(manifest.digest)
        marker = self._root / f"tmp/{manifest.digest}"
        s3.write_bytes(marker, describe_this_process().encode())
        differs = self._differs(prefix)

        def upload(entry: FileEntry) -> None:
            if differs(entry):
                s3.client().put_file(
                    str(staged / entry.path),
                    f"{prefix.bucket}/{prefix.key}/{entry.path}",
                    Metadata={"sha256": entry.sha256},
                    **_PARTS,
                )

        _in_parallel(upload, manifest.files)
        if damage := self.find_damage(manifest):
            raise CorruptArtifactError(
                f"{prefix}: the upload is not complete: {damage}; did {staged} change meanwhile?"
            )
        s3.write_bytes(prefix / MANIFEST_NAME, manifest.to_json())
        s3.delete(marker)

    def fetch(self, manifest: Manifest, cache_dir: Path) -> Path:
        """Return a folder of the cache with the artifact's files, downloaded where needed."""
        target = cache_dir.absolute() / manifest.digest
        if target.exists():
            if not files.find_damage(target, manifest.files):
                return target
            shutil.rmtree(target)
        prefix = self._prefix(manifest.digest)
        with (
            s3.translated(StoreError, "read", prefix),
            files.staging_folder(cache_dir.absolute() / "tmp") as work,
        ):
            self._download(prefix, manifest.files, work)
            if damage := files.find_damage(work, manifest.files):
                raise CorruptArtifactError(
                    f"{prefix}: the artifact is damaged: {damage}; "
                    "delete that object and run again to compute it anew."
                )
            try:
                work.rename(target)
            except OSError:
                # Another process has put the same artifact there meanwhile.
                if files.find_damage(target, manifest.files):
                    raise
            files.remember_verified(target, manifest.files)
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

    def _prefix(self, digest: str) -> s3.S3Path:
        return self._root / f"artifacts/{digest}"

    def _differs(self, prefix: s3.S3Path) -> Callable[[FileEntry], str | None]:
        """Return a function that says what is wrong with the object of an entry, or None."""

        def differs(entry: FileEntry) -> str | None:
            answer = s3.head(prefix / entry.path)
            if answer is None:
                return f"{entry.path} is missing"
            if answer["ContentLength"] != entry.size:
                return f"{entry.path} has {answer['ContentLength']} bytes instead of {entry.size}"
            if answer["Metadata"].get("sha256") != entry.sha256:
                return f"{entry.path} was overwritten"
            return None

        return differs

    def _download(self, prefix: s3.S3Path, entries: Sequence[FileEntry], folder: Path) -> None:
        def download(entry: FileEntry) -> None:
            path = folder / entry.path
            path.parent.mkdir(parents=True, exist_ok=True)
            s3.client().get_file(f"{prefix.bucket}/{prefix.key}/{entry.path}", str(path))

        try:
            _in_parallel(download, entries)
        except FileNotFoundError as error:
            if s3.error_code(error) == "NoSuchBucket":
                raise
            raise CorruptArtifactError(f"{prefix}: a file of the artifact is missing.") from None

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


def _in_parallel(function: Callable[[_Item], _Result], items: Sequence[_Item]) -> list[_Result]:
    with ThreadPoolExecutor(_TRANSFERS) as pool:
        return list(pool.map(function, items))
