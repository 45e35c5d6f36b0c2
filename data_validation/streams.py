"""Files as bounded byte streams: decompression, physical lines, and what refuses a whole file."""

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple, NoReturn

import pyarrow as pa

from alignflow.data_validation.reasons import REASONS
from alignflow.errors import DataError

BLOCK_BYTES = 1 << 18
_COMPRESSIONS = (".gz", ".zst")
_GZIP_MAGIC = b"\x1f\x8b"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_BOM = b"\xef\xbb\xbf"
_OTHER_BOMS = (b"\xff\xfe", b"\xfe\xff")
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


class NamedFile(NamedTuple):
    """A local file and the name that the user knows it by."""

    path: Path
    name: str

    @property
    def compression(self) -> str:
        """The suffix of the compression, or an empty text."""
        suffix = Path(self.name).suffix.lower()
        return suffix if suffix in _COMPRESSIONS else ""

    @property
    def format(self) -> str:
        """The suffix that says the format, without a dot, such as `jsonl`."""
        name = Path(self.name)
        return (name.with_suffix("") if self.compression else name).suffix.lower().lstrip(".")


def refuse_file(file: NamedFile, reason: str, what_to_do: str) -> NoReturn:
    """Refuse the whole file: one sentence with what is wrong and what to do."""
    raise DataError(f"{file.name}: {REASONS[reason]}; {what_to_do}.", reason=reason)


@contextmanager
def open_stream(file: NamedFile) -> Iterator[IO[bytes]]:
    """Open a file for sequential reading, decompressed by its suffix.

    A read never holds more than the block asked for, however far the file expands.

    Raises:
        DataError: The file is missing, empty, or not the archive its name says; also while it is
            read, when the archive is truncated or corrupt.
    """
    magic = _read_magic(file)
    stream: Any
    if file.compression == ".gz":
        if not magic.startswith(_GZIP_MAGIC):
            refuse_file(file, "not_gzip", "rename it or compress it")
        stream = gzip.open(file.path, "rb")  # noqa: SIM115 - closed below
    elif file.compression == ".zst":
        if not magic.startswith(_ZSTD_MAGIC):
            refuse_file(file, "not_zstd", "rename it or compress it")
        # zstandard's own reader takes a truncated frame for the end; Arrow's raises.
        stream = pa.input_stream(str(file.path), compression="zstd")
    else:
        stream = file.path.open("rb")
    with stream, _archive_errors(file):
        yield stream


def _read_magic(file: NamedFile) -> bytes:
    try:
        with file.path.open("rb") as raw:
            magic = raw.read(64)
    except FileNotFoundError:
        raise DataError(f"{file.name}: no such file; check the path.") from None
    except OSError as error:
        raise DataError(f"{file.name}: can't be read ({error.strerror}).") from None
    if not magic:
        refuse_file(file, "empty_file", "check the download")
    if magic.startswith(_LFS_POINTER):
        refuse_file(file, "lfs_pointer", "fetch it with git lfs pull")
    return magic


@contextmanager
def _archive_errors(file: NamedFile) -> Iterator[None]:
    """Turn what the decompressors raise while the file is read into refusals."""
    try:
        yield
    except EOFError:
        refuse_file(file, "truncated_archive", "fetch it again")
    except (zlib.error, gzip.BadGzipFile):
        refuse_file(file, "corrupt_archive", "fetch it again")
    except OSError as error:
        if file.compression != ".zst":
            raise DataError(f"{file.name}: can't be read ({error}).") from None
        truncated = "Truncated" in str(error)
        reason = "truncated_archive" if truncated else "corrupt_archive"
        refuse_file(file, reason, "fetch it again")


class Line(NamedTuple):
    """One physical line, without its LF."""

    number: int
    """1-based."""
    text: bytes
    is_complete: bool
    """False for a last line that no LF ends."""


def read_lines(stream: IO[bytes], file: NamedFile, max_line_bytes: int) -> Iterator[Line]:
    """Yield the lines of a stream one by one; see `read_line_runs`."""
    for run in read_line_runs(stream, file, max_line_bytes):
        for number, text in enumerate(run.text.split(b"\n"), start=run.first):
            yield Line(number, text, run.is_complete)


class LineRun(NamedTuple):
    """Physical lines that follow one another."""

    first: int
    """Number of the first one, from 1."""
    number: int
    """How many they are."""
    text: bytes
    """The lines, with an LF between one and the next."""
    is_complete: bool
    """False for a last line alone that no LF ends."""


def read_line_runs(stream: IO[bytes], file: NamedFile, max_line_bytes: int) -> Iterator[LineRun]:
    """Yield the lines of a stream, split at LF only; a byte order mark is dropped.

    Raises:
        DataError: A line is longer than `max_line_bytes`; reading stops there. Or the file starts
            with the byte order mark of another encoding.
    """
    first = 1
    rest = b""
    is_first = True
    while block := stream.read(BLOCK_BYTES):
        if is_first:
            block = _without_bom(block, file)
            is_first = False
        block = rest + block
        if len(block) > max_line_bytes:
            _refuse_long_line(block.split(b"\n"), first, file, max_line_bytes)
        text, newline, rest = block.rpartition(b"\n")
        if newline:
            number = text.count(b"\n") + 1
            yield LineRun(first, number, text, is_complete=True)
            first += number
    if rest:
        yield LineRun(first, 1, rest, is_complete=False)


def _without_bom(block: bytes, file: NamedFile) -> bytes:
    # Text in UTF-16 or UTF-32 without a mark shows as NUL in every other byte or more.
    has_nuls = block[:4096].count(0) * 4 > len(block[:4096])
    if block.startswith(_OTHER_BOMS) or has_nuls:
        refuse_file(file, "not_utf8", "save it as UTF-8")
    return block.removeprefix(_BOM)


def _refuse_long_line(texts: list[bytes], first: int, file: NamedFile, max_line_bytes: int) -> None:
    """Refuse the file for the first line that is too long, if one is."""
    for number, text in enumerate(texts, start=first):
        if len(text) > max_line_bytes:
            refuse_file(
                file,
                "line_too_long",
                f"line {number} is longer than max_line_bytes ({max_line_bytes}); split it or "
                "raise the limit",
            )


def read_to_end(file: NamedFile) -> None:
    """Decompress an archive to its end, which alone tells whether it is whole.

    Raises:
        DataError: The archive is truncated or corrupt.
    """
    if file.compression:
        with open_stream(file) as stream:
            while stream.read(BLOCK_BYTES):
                pass
