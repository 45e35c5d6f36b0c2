"""Files of an artifact on a local disk: listing, hashing, verifying, staging, linking."""

import errno
import hashlib
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from alignflow.artifacts.manifest import MANIFEST_NAME, FileEntry
from alignflow.errors import DataError, InputError
from alignflow.locks import FileLock

_NO_HARD_LINK = (errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS)
_STALE_AFTER_S = 60.0
_REASONS = {
    errno.ENOSPC: "the disk is full; free some space",
    errno.EDQUOT: "the disk quota is used up; free some space",
    errno.EROFS: "the file system is read-only; give a place that you may write to",
    errno.EACCES: "permission is denied; give a place that you may use",
    errno.EPERM: "permission is denied; give a place that you may use",
    errno.ENOTDIR: "a file stands where a folder is needed; give another path",
}

# Folder -> inode and time of change of each of its files when they were last found undamaged.
_verified: dict[Path, list[tuple[int, int]]] = {}


@contextmanager
def os_errors_as(error_class: type[InputError], action: str) -> Iterator[None]:
    """Turn an error of the file system into one sentence: what could not be done, and why."""
    try:
        yield
    except OSError as error:
        reason = _REASONS.get(error.errno or 0, error.strerror or type(error).__name__)
        where = f" ({error.filename})" if error.filename else ""
        raise error_class(f"can't {action}: {reason}{where}.") from None


def list_files(folder: Path) -> list[str]:
    """Return the relative path of every file below a folder, sorted.

    Empty folders are not part of an artifact.

    Raises:
        DataError: There is no folder, or it holds a link, a device or a name that is not UTF-8.
    """
    if not folder.is_dir():
        raise DataError(f"{folder.absolute()}: there is no such folder.")
    return sorted(_walk(folder, ""))


def _walk(folder: Path, prefix: str) -> Iterator[str]:
    with os.scandir(folder) as scan:
        entries = list(scan)
    for entry in entries:
        path = prefix + entry.name
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(folder / entry.name, f"{path}/")
        elif not entry.is_file(follow_symlinks=False):
            what = "a link" if entry.is_symlink() else "no regular file"
            raise DataError(
                f"{folder / entry.name}: this is {what}; an artifact holds regular files only, "
                "so put the file itself there."
            )
        elif not _is_utf8(path):
            raise DataError(f"{folder}: the file name {entry.name!r} is not UTF-8; rename it.")
        else:
            yield path


def _is_utf8(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def hash_files(folder: Path, paths: Sequence[str]) -> tuple[FileEntry, ...]:
    """Return an entry for each file, hashed in parallel and streamed."""

    def entry(path: str) -> FileEntry:
        with (folder / path).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return FileEntry(path=path, size=file.tell(), sha256=digest)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return tuple(pool.map(entry, paths))


def find_damage(folder: Path, files: Sequence[FileEntry]) -> str | None:
    """Return in a few words what is wrong with an artifact's folder, or None.

    The content is hashed once per process; after that, a file counts as unchanged as long as its
    inode and its time of change are.
    """
    try:
        found = [path for path in list_files(folder) if path != MANIFEST_NAME]
    except DataError as error:
        return str(error)
    expected = [entry.path for entry in files]
    if missing := sorted(set(expected) - set(found)):
        return f"{missing[0]} is missing"
    if extra := sorted(set(found) - set(expected)):
        return f"{extra[0]} does not belong there"
    stamps = []
    for entry in files:
        status = (folder / entry.path).stat()
        if status.st_size != entry.size:
            return f"{entry.path} has {status.st_size} bytes instead of {entry.size}"
        stamps.append((status.st_ino, status.st_mtime_ns))
    if _verified.get(folder) == stamps:
        return None
    for entry, actual in zip(files, hash_files(folder, expected), strict=True):
        if actual != entry:
            return f"the content of {entry.path} has changed"
    _verified[folder] = stamps
    return None


def remember_verified(folder: Path, files: Sequence[FileEntry]) -> None:
    """Note that the files were hashed under another name of the folder just now."""
    states = [(folder / entry.path).stat() for entry in files]
    _verified[folder] = [(state.st_ino, state.st_mtime_ns) for state in states]


@contextmanager
def staging_folder(parent: Path) -> Iterator[Path]:
    """Make a folder for half-done work in `parent`, and remove it at the end.

    A process that is killed leaves its folder behind; the next one to come removes it. It knows
    by a lock in the folder, which the kernel has freed, that nobody works there any more.
    """
    parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(parent)
    folder = Path(tempfile.mkdtemp(dir=parent))
    lock = FileLock(folder / "lock")
    try:
        lock.try_acquire()  # nobody else can have it: the folder is new
        work = folder / "files"
        work.mkdir()
        yield work
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.release()


def _remove_stale(parent: Path) -> None:
    for folder in parent.iterdir():
        try:
            # A young folder may be one whose owner is about to lock it.
            if time.time() - folder.stat().st_mtime < _STALE_AFTER_S:
                continue
            lock = FileLock(folder / "lock")
            if lock.try_acquire():
                shutil.rmtree(folder, ignore_errors=True)
                lock.release()
        except OSError:
            # Somebody else's leavings, or removed by another process just now.
            continue


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name; copy it where the file system can't."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_HARD_LINK:
            raise
        shutil.copyfile(source, target)


def make_durable(folder: Path) -> None:
    """Bring every file and folder below `folder`, and itself, to the disk; files are read-only."""
    for at, _, names in os.walk(folder, topdown=False):
        for name in names:
            path = Path(at, name)
            path.chmod(stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH)
            sync(path)
        sync(Path(at))


def write_atomically(path: Path, content: bytes, staging: Path) -> None:
    """Replace a file by new content; readers see the old or the new, also after a power cut.

    Args:
        path: The file; its folder is made where it is missing.
        content: What it will hold.
        staging: Folder for the half-written file, on the same file system.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with staging_folder(staging) as work:
        half_done = work / "content"
        half_done.write_bytes(content)
        sync(half_done)
        half_done.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Bring a file's content, or a folder's list of names, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
