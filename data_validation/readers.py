"""Rows of a file in any format: JSON lines, a JSON array, CSV or Parquet; plain, gz or zst."""

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator

from alignflow.data_validation.blocks import Block, item_blocks, line_blocks, parsed_blocks
from alignflow.data_validation.config import RowLimits
from alignflow.data_validation.json_array import read_array_items
from alignflow.data_validation.source_row import SourceRow
from alignflow.data_validation.streams import (
    NamedFile,
    open_stream,
    read_line_runs,
    refuse_file,
)
from alignflow.data_validation.tabular import read_csv, read_parquet
from alignflow.errors import DataError

_NO_JSON = ("invalid_utf8", "invalid_json", "truncated_last_line")
_JSON_FORMATS = ("jsonl", "json")
_Reader = Callable[[NamedFile, RowLimits], Iterator[Block]]


def read_rows(file: NamedFile, limits: RowLimits) -> Generator[SourceRow, None, None]:
    """Yield every row of a file in order, parsed, refused or blank, in bounded memory.

    Nothing may be used of a file whose reading ends in an error: the rows that came out before it
    are those of a broken archive or of a file that is no data at all.

    Raises:
        DataError: The file as a whole is refused; `reason` holds the code.
    """
    tally = Tally()
    for block in read_blocks(file, limits):
        for row in block.rows():
            tally.add(not row.is_blank, [row.refused.reason] if row.refused else [])
            yield row
    tally.check(file)


def read_blocks(file: NamedFile, limits: RowLimits) -> Iterator[Block]:
    """Yield the rows of a file as `read_rows` does, block by block and parsed as late as possible.

    Whether the file is refused for what its rows are is left to a `Tally`.

    Raises:
        DataError: The file as a whole is refused; `reason` holds the code.
    """
    reader = _READERS.get(file.format)
    if reader is None:
        raise DataError(
            f"{file.name}: its name says no format that can be read; "
            f"known: {', '.join('.' + name for name in _READERS)}, each also with .gz or .zst."
        )
    yield from reader(file, limits)


class Tally:
    """What the rows of a file say of the file as a whole."""

    def __init__(self) -> None:
        self._num_records = 0
        self._num_refused: Counter[str] = Counter()

    def add(self, num_records: int, refused: Iterable[str]) -> None:
        """Take so many rows into account that are not blank, and why some of them are refused."""
        self._num_records += num_records
        self._num_refused.update(refused)

    def check(self, file: NamedFile) -> None:
        """Refuse a file without records, or of JSON in which none is JSON.

        Raises:
            DataError: The file is refused.
        """
        if self._num_records == 0:
            refuse_file(file, "empty_file", "check how it was made")
        if file.format not in _JSON_FORMATS:
            return
        if self._num_refused["invalid_utf8"] == self._num_records:
            refuse_file(file, "not_utf8", "save it as UTF-8")
        if sum(self._num_refused[reason] for reason in _NO_JSON) == self._num_records:
            refuse_file(file, "not_jsonl", "look at what was downloaded")


def _read_json_lines(file: NamedFile, limits: RowLimits) -> Iterator[Block]:
    with open_stream(file) as stream:
        runs = read_line_runs(stream, file, limits.max_line_bytes)
        yield from line_blocks(runs, limits.max_json_depth)


def _read_json(file: NamedFile, limits: RowLimits) -> Iterator[Block]:
    """Read `.json`: an array of objects, or lines in spite of the name, as many sets are kept."""
    with open_stream(file) as stream:
        start = stream.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    if start.startswith(b"["):
        with open_stream(file) as stream:
            items = read_array_items(stream, file, limits.max_line_bytes)
            yield from item_blocks(items, limits.max_json_depth)
    else:
        yield from _read_json_lines(file, limits)


def _read_csv(file: NamedFile, limits: RowLimits) -> Iterator[Block]:
    yield from parsed_blocks(read_csv(file, limits))


_READERS: dict[str, _Reader] = {
    "jsonl": _read_json_lines,
    "json": _read_json,
    "csv": _read_csv,
    "parquet": read_parquet,
}
