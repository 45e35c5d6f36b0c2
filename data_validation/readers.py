"""Rows of a file in any format: JSON lines, a JSON array, CSV or Parquet; plain, gz or zst."""

from collections.abc import Callable, Generator, Iterator

from alignflow.data_validation.config import RowLimits
from alignflow.data_validation.json_array import read_array_items
from alignflow.data_validation.parsing import parse_object
from alignflow.data_validation.reasons import RowRefused
from alignflow.data_validation.source_row import SourceRow
from alignflow.data_validation.streams import (
    Line,
    NamedFile,
    open_stream,
    read_lines,
    refuse_file,
)
from alignflow.data_validation.tabular import read_csv, read_parquet
from alignflow.errors import DataError

_NO_JSON = ("invalid_utf8", "invalid_json", "truncated_last_line")
_Reader = Callable[[NamedFile, RowLimits], Iterator[SourceRow]]


def read_rows(file: NamedFile, limits: RowLimits) -> Generator[SourceRow, None, None]:
    """Yield every row of a file in order, parsed, refused or blank, in bounded memory.

    Nothing may be used of a file whose reading ends in an error: the rows that came out before it
    are those of a broken archive or of a file that is no data at all.

    Raises:
        DataError: The file as a whole is refused; `reason` holds the code.
    """
    reader = _READERS.get(file.format)
    if reader is None:
        raise DataError(
            f"{file.name}: its name says no format that can be read; "
            f"known: {', '.join('.' + name for name in _READERS)}, each also with .gz or .zst."
        )
    num_records = 0
    for row in reader(file, limits):
        num_records += not row.is_blank
        yield row
    if num_records == 0:
        refuse_file(file, "empty_file", "check how it was made")


def _read_json_lines(file: NamedFile, limits: RowLimits) -> Iterator[SourceRow]:
    with open_stream(file) as stream:
        lines = read_lines(stream, file, limits.max_line_bytes)
        yield from _refuse_if_none_parses(file, (_parse_line(line, limits) for line in lines))


def _read_json(file: NamedFile, limits: RowLimits) -> Iterator[SourceRow]:
    """Read `.json`: an array of objects, or lines in spite of the name, as many sets are kept."""
    with open_stream(file) as stream:
        start = stream.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    if start.startswith(b"["):
        with open_stream(file) as stream:
            items = read_array_items(stream, file, limits.max_line_bytes)
            yield from _refuse_if_none_parses(file, (_parse_item(item, limits) for item in items))
    else:
        yield from _read_json_lines(file, limits)


def _parse_line(line: Line, limits: RowLimits) -> SourceRow:
    if not line.text.strip():
        return SourceRow(line.number, line.text)
    try:
        return SourceRow(line.number, line.text, parse_object(line.text, limits.max_json_depth))
    except RowRefused as refused:
        if refused.reason == "invalid_json" and not line.is_complete:
            refused = RowRefused("truncated_last_line")
        return SourceRow(line.number, line.text, refused=refused)


def _parse_item(item: Line, limits: RowLimits) -> SourceRow:
    if not item.is_complete:
        # The array never closes: this is the last item at best in part, even where it parses.
        return SourceRow(item.number, item.text, refused=RowRefused("truncated_last_line"))
    return _parse_line(item, limits)


def _refuse_if_none_parses(file: NamedFile, rows: Iterator[SourceRow]) -> Iterator[SourceRow]:
    """Refuse the file where no row is JSON; until one is, remember only why the others aren't."""
    reasons = set()
    has_parsed = False
    for row in rows:
        if row.refused and row.refused.reason in _NO_JSON:
            reasons.add(row.refused.reason)
        elif not row.is_blank:
            has_parsed = True
        yield row
    if not has_parsed and reasons == {"invalid_utf8"}:
        refuse_file(file, "not_utf8", "save it as UTF-8")
    elif not has_parsed and reasons:
        refuse_file(file, "not_jsonl", "look at what was downloaded")


_READERS: dict[str, _Reader] = {
    "jsonl": _read_json_lines,
    "json": _read_json,
    "csv": read_csv,
    "parquet": read_parquet,
}
