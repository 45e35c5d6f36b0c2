"""Files on their way: which there are, in what state, and which are not finished yet.

A name tells: `.part`, `.tmp` and the like are taken off when a file is whole, and hidden names are
nobody's data. Otherwise only time tells: a file that is being written changes its size or times, an
object of S3 its entity tag. An upload to S3 in parts shows nothing before it is complete.
"""

import glob
import hashlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from alignflow import s3
from alignflow.errors import DataError
from alignflow.sources import NOTHING_THERE, expand, fetch_digest, is_data_file

_UNFINISHED = re.compile(
    r"\.(part|partial|tmp|temp|crdownload|download|filepart|incomplete|swp)(\.|$)|~$", re.IGNORECASE
)


class SeenFile(NamedTuple):
    """A file in the state in which it was seen."""

    uri: str
    state: str


def seen_files(sources: Iterable[str]) -> list[SeenFile]:
    """Return the data files that paths, folders, globs and `s3://` prefixes name now, by URI.

    Raises:
        DataError: A source isn't there, or can't be read.
        ConfigError: One is no S3 URL.
    """
    found = {file.uri: file for source in sources for file in _seen(source)}
    return [found[uri] for uri in sorted(found)]


def fingerprint(files: Iterable[SeenFile]) -> str:
    """Return what differs as soon as a file comes, goes or changes."""
    lines = "\n".join(f"{file.uri}\t{file.state}" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def content_digest(sha256s: Iterable[str]) -> str:
    """Return the digest of a set of files: what they hold, whatever their names and copies."""
    return hashlib.sha256("\n".join(sorted(set(sha256s))).encode()).hexdigest()


def read_digests(files: Iterable[SeenFile], cache: Path) -> dict[str, str]:
    """Return the SHA-256 of each file by its URI; what was read before in its state isn't again.

    Raises:
        DataError: A file can't be read, or is gone.
    """
    return {file.uri: fetch_digest(file.uri, cache) for file in files}


def _seen(source: str) -> Iterator[SeenFile]:
    if not source.startswith("s3://"):
        yield from map(_seen_file, filter(_is_finished, _expanded(source)))
        return
    path = s3.S3Path.parse(source)
    with s3.translated(DataError, "read", path):
        if glob.has_magic(path.key) or (path.key and s3.head(path) is not None):
            yield from map(_seen_object, filter(_is_finished, _expanded(source)))
            return
        prefix = path / "" if path.key else path
        for item in s3.list_objects(prefix):
            name = item.path.key.removeprefix(prefix.key)
            if is_data_file(name) and _is_finished(name):
                yield SeenFile(str(item.path), f"{item.size} {item.etag}")


def _expanded(source: str) -> list[str]:
    try:
        return expand(source)
    except DataError as error:
        if error.reason != NOTHING_THERE:
            raise
        return []


def _is_finished(uri: str) -> bool:
    return _UNFINISHED.search(PurePosixPath(uri).name) is None


def _seen_file(uri: str) -> SeenFile:
    path = Path(uri.removeprefix("file://")).expanduser().absolute()
    try:
        status = path.stat()
    except FileNotFoundError:
        # Gone since it was listed: another state than any that it had.
        return SeenFile(str(path), "gone")
    times = f"{status.st_mtime_ns} {status.st_ctime_ns}"
    return SeenFile(str(path), f"{status.st_size} {status.st_ino} {times}")


def _seen_object(uri: str) -> SeenFile:
    answer = s3.head(s3.S3Path.parse(uri))
    state = "gone" if answer is None else f"{answer['ContentLength']} {answer['ETag']}"
    return SeenFile(uri, state)
