"""An artifact store in a folder of a local or shared file system."""

import contextlib
import errno
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from alignflow.artifacts import files
from alignflow.artifacts.manifest import MANIFEST_NAME, Manifest
from alignflow.errors import CorruptArtifactError, StoreError
from alignflow.locks import FileLock


class LocalBackend:
    """Artifacts as folders; a publish ends with the rename of a folder that is complete."""

    def __init__(self, root: Path) -> None:
        self._root = root.expanduser().absolute()
        self._staging = self._root / "tmp"

    def uri(self, digest: str) -> str:
        """Return the URL of an artifact's folder."""
        return f"file://{self._folder(digest)}"

    def read(self, name: str) -> bytes | None:
        """Return the content of a small file of the store, or None where there is none."""
        with self._translated("read"):
            try:
                return (self._root / name).read_bytes()
            except FileNotFoundError:
                return None

    def write(self, name: str, content: bytes) -> None:
        """Write a small file of the store atomically."""
        with self._translated("write to"):
            files.write_atomically(self._root / name, content, self._staging)

    def digests(self, prefix: str) -> list[str]:
        """Return the digests of the artifacts whose digest starts so."""
        with self._translated("read"):
            return sorted(path.name for path in self._root.glob(f"artifacts/{prefix}*"))

    def find_damage(self, manifest: Manifest) -> str | None:
        """Return in a few words what is wrong with the files of an artifact, or None."""
        with self._translated("read"):
            return files.find_damage(self._folder(manifest.digest), manifest.files)

    @contextmanager
    def staged(self, folder: Path, *, copy: bool) -> Iterator[Path]:
        """Give a folder's files a place in the store, under a name that nobody looks at."""
        paths = files.list_files(folder)
        take = shutil.copyfile if copy else files.link_or_copy
        with self._translated("write to"), files.staging_folder(self._staging) as work:
            for path in paths:
                (work / path).parent.mkdir(parents=True, exist_ok=True)
                take(folder / path, work / path)
            yield work

    def commit(self, staged: Path, manifest: Manifest) -> None:
        """Make a staged folder visible as the artifact; an undamaged one already there stays."""
        target = self._folder(manifest.digest)
        (staged / MANIFEST_NAME).write_bytes(manifest.to_json())
        files.make_durable(staged)
        target.parent.mkdir(exist_ok=True)
        while True:
            try:
                staged.rename(target)
                break
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                if self._is_sound(manifest):
                    return
                self._set_aside(target)
        files.sync(target.parent)
        files.remember_verified(target, manifest.files)

    def fetch(self, manifest: Manifest, cache_dir: Path) -> Path:
        """Return the artifact's folder, where it lies."""
        if damage := self.find_damage(manifest):
            raise CorruptArtifactError(
                f"{self._folder(manifest.digest)}: the artifact is damaged: {damage}; "
                "run again to compute it anew."
            )
        return self._folder(manifest.digest)

    def check_writable(self) -> None:
        """Write a file and remove it again.

        Raises:
            StoreError: That isn't possible.
        """
        with self._translated("write to"), files.staging_folder(self._staging) as work:
            (work / "probe").write_bytes(b"probe")

    def lock(self, key: str) -> FileLock:
        """Return the lock of a stage key."""
        with self._translated("write to"):
            (self._root / "locks").mkdir(parents=True, exist_ok=True)
        return FileLock(self._root / "locks" / f"{key}.lock")

    def ages(self, folder: str) -> dict[str, float]:
        """Return the small files of a folder, each with the seconds since it was written."""
        with self._translated("read"):
            now = time.time()
            return {
                path.name: now - path.stat().st_mtime
                for path in sorted((self._root / folder).glob("*.json"))
            }

    def touch(self, name: str) -> None:
        """Make a small file, if it is there, as young as one just written."""
        with self._translated("write to"), contextlib.suppress(FileNotFoundError):
            os.utime(self._root / name)

    def remove(self, name: str) -> None:
        """Remove a small file, if it is there."""
        with self._translated("write to"):
            (self._root / name).unlink(missing_ok=True)

    def remove_artifact(self, digest: str, is_wanted: Callable[[], bool]) -> bool:
        """Take an artifact out of sight, then put it back if it is wanted, or remove its files."""
        with self._translated("write to"), files.staging_folder(self._staging) as work:
            aside = work / digest
            try:
                self._folder(digest).rename(aside)
            except FileNotFoundError:
                return False
            if is_wanted():
                # Where a publisher has put it there again, this one goes with the staging folder.
                with contextlib.suppress(OSError):
                    aside.rename(self._folder(digest))
                return False
            return True

    def _folder(self, digest: str) -> Path:
        return self._root / "artifacts" / digest

    def _is_sound(self, manifest: Manifest) -> bool:
        folder = self._folder(manifest.digest)
        try:
            committed = Manifest.model_validate_json((folder / MANIFEST_NAME).read_bytes())
        except (OSError, ValueError):
            return False
        return committed.digest == manifest.digest and not self.find_damage(manifest)

    def _set_aside(self, damaged: Path) -> None:
        with files.staging_folder(self._staging) as work:
            try:
                damaged.rename(work / damaged.name)
            except FileNotFoundError:
                # Another publisher of the same artifact was faster.
                return

    def _translated(self, action: str) -> AbstractContextManager[None]:
        return files.os_errors_as(StoreError, f"{action} the store {self._root}")
