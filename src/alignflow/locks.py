"""Locks by which runs that want the same artifact at once compute it once.

On a folder a lock is `flock`: the kernel frees it when its holder dies, however it dies. On S3 it
is a lease: an object made and changed by conditional writes only, renewed by a thread, and taken
over once it has not been renewed for its whole length. Its age is measured by the server's clock
alone, so the clocks of the machines need not agree.
"""

import fcntl
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from alignflow import s3
from alignflow.errors import StoreError

OnWait = Callable[[str], None]
"""Called at every look while somebody else holds the lock, with a few words on who that is.

What it raises ends the wait.
"""

_logger = logging.getLogger(__name__)


class Lock(Protocol):
    """What both kinds of lock do."""

    def acquire(self, on_wait: OnWait | None = None) -> None:
        """Wait until this process holds the lock; Ctrl-C ends the wait."""

    def release(self) -> None:
        """Let the next one have it."""


def describe_this_process() -> str:
    """Return a few words by which a person finds the process that holds a lock."""
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return f"process {os.getpid()} on {socket.gethostname()}, since {now}"


class FileLock:
    """A lock on a file of a shared folder; the file stays and names its latest holder."""

    def __init__(self, path: Path, *, poll_s: float = 0.1) -> None:
        self._path = path
        self._poll_s = poll_s
        self._file: int | None = None

    def try_acquire(self) -> bool:
        """Take the lock if nobody holds it; return whether it is held now.

        Raises:
            OSError: The file can't be made, or its file system has no locks.
        """
        file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(file, 0)
            os.pwrite(file, describe_this_process().encode(), 0)
        except BaseException as error:
            os.close(file)
            if isinstance(error, BlockingIOError):
                return False
            raise
        self._file = file
        return True

    def acquire(self, on_wait: OnWait | None = None) -> None:
        """Wait until this process holds the lock.

        Raises:
            StoreError: The lock file can't be made or locked.
        """
        try:
            while not self.try_acquire():
                if on_wait is not None:
                    on_wait(self._path.read_text(encoding="utf-8", errors="replace"))
                # A blocking flock in a thread would not hear of Ctrl-C.
                time.sleep(self._poll_s)
        except OSError as error:
            raise StoreError(
                f"{self._path}: can't be locked ({error.strerror}); give a store that you may "
                "write to, on a file system with locks."
            ) from None

    def release(self) -> None:
        """Let the next one have it."""
        if self._file is not None:
            # Unlocked by name: a forked child may still have the file open.
            fcntl.flock(self._file, fcntl.LOCK_UN)
            os.close(self._file)
            self._file = None


@dataclass(frozen=True)
class _Lease:
    """The lock object as the server holds it."""

    token: str
    owner: str
    etag: str
    is_free: bool
    """Released, or not renewed for its whole length."""


class LeaseLock:
    """A lock on an S3 object.

    A holder that is cut off from the server for longer than the lease loses it: then two runs may
    compute the same artifact, which costs time and harms nothing, since artifacts are named by
    their content.

    Args:
        path: The lock object. It stays when the lock is free.
        lease_s: Seconds without renewal after which others may take the lock over.
        poll_s: Seconds between two looks of a waiter.
    """

    def __init__(self, path: s3.S3Path, *, lease_s: float = 60.0, poll_s: float = 1.0) -> None:
        self._path = path
        self._lease_s = lease_s
        self._poll_s = poll_s
        self._token = uuid.uuid4().hex
        self._owner = describe_this_process()
        self._etag = ""
        self._stop = threading.Event()
        self._renewer: threading.Thread | None = None

    def acquire(self, on_wait: OnWait | None = None) -> None:
        """Wait until this process holds the lock.

        Raises:
            StoreError: The bucket can't be written to.
        """
        with s3.translated(StoreError, "lock", self._path):
            while not self._take(lease := self._read()):
                if on_wait is not None and lease is not None:
                    on_wait(lease.owner)
                time.sleep(self._poll_s)
        self._stop.clear()
        self._renewer = threading.Thread(target=self._renew, name="alignflow-lease", daemon=True)
        self._renewer.start()

    def release(self) -> None:
        """Let the next one have it."""
        if self._renewer is None:
            return
        self._stop.set()
        self._renewer.join()
        self._renewer = None
        try:
            # Marked as free rather than deleted: a delete could hit the lease of a successor.
            self._write("free", IfMatch=self._etag)
        except Exception as error:
            # What the lock was for is done; the lease ends by itself.
            _logger.warning("%s: can't be unlocked (%s)", self._path, type(error).__name__)

    def _take(self, lease: _Lease | None) -> bool:
        """Take the lock if it is free in the state just read; return whether it is held now."""
        if lease is None:
            return self._write("held", IfNoneMatch="*")
        if lease.is_free:
            return self._write("held", IfMatch=lease.etag)
        if lease.token == self._token:
            # The write arrived, but its answer was lost and the client's second try refused.
            self._etag = lease.etag
            return True
        return False

    def _renew(self) -> None:
        while not self._stop.wait(self._lease_s / 4):
            try:
                if not self._write("held", IfMatch=self._etag) and not self._still_ours():
                    _logger.warning("%s: the lease was lost to another run", self._path)
                    return
            except Exception as error:
                # Tried again until the lease is over: the network may come back.
                _logger.warning("%s: can't renew the lease (%s)", self._path, type(error).__name__)

    def _still_ours(self) -> bool:
        lease = self._read()
        if lease is None or lease.token != self._token:
            return False
        self._etag = lease.etag
        return True

    def _read(self) -> _Lease | None:
        answer = s3.head(self._path)
        if answer is None:
            return None
        metadata = answer["Metadata"]
        is_expired = s3.age_s(answer) > float(metadata.get("lease-s", 0))
        return _Lease(
            token=metadata.get("token", ""),
            owner=metadata.get("owner", "another run"),
            etag=answer["ETag"],
            is_free=metadata.get("state") == "free" or is_expired,
        )

    def _write(self, state: str, **condition: str) -> bool:
        """Write the lease if nobody has changed it; return whether it was written."""
        metadata = {
            "state": state,
            "token": self._token,
            "owner": self._owner,
            "lease-s": str(self._lease_s),
        }
        # The content differs each time, and with it the entity tag that conditions compare.
        content = json.dumps({**metadata, "write": uuid.uuid4().hex}).encode()
        try:
            answer: dict[str, Any] = s3.client().call_s3(
                "put_object", **self._path.target, Body=content, Metadata=metadata, **condition
            )
        except Exception as error:
            if s3.is_conflict(error):
                return False
            raise
        self._etag = answer["ETag"]
        return True
