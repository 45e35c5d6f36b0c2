"""Rows of CSV and Parquet files."""

import csv
import math
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from alignflow.data_validation.blocks import BLOCK_BYTES, BLOCK_ROWS, ArrowBlock, Block
from alignflow.data_validation.config import RowLimits
from alignflow.data_validation.reasons import RowRefused
from alignflow.data_validation.source_row import SourceRow
from alignflow.data_validation.streams import (
    LineRun,
    NamedFile,
    open_stream,
    read_line_runs,
    refuse_file,
)

_NUMBER_COLUMNS = ("score_chosen", "score_rejected", "chosen_reward", "rejected_reward")
_LABELS = {"true": True, "false": False}
_OPTIONAL_COLUMNS = ("id", "input", *_NUMBER_COLUMNS)
_CONVERTED_COLUMNS = (*_OPTIONAL_COLUMNS, "label")
_BUFFER_BYTES = 1 << 20


def read_csv(file: NamedFile, limits: RowLimits) -> Iterator[SourceRow]:
    """Yield the records of a CSV file with a header, numbered from 1 after it.

    An empty field of an optional column counts as absent, scores are read as numbers, and labels
    as `true` or `false`.

    Raises:
        DataError: The file is refused as a whole.
    """
    # The field limit of the csv module is the process's: only ever raise it.
    csv.field_size_limit(max(csv.field_size_limit(), limits.max_line_bytes))
    with open_stream(file) as stream:
        lines = _RecordLines(read_line_runs(stream, file, limits.max_line_bytes), file, limits)
        records = csv.reader(lines)
        header = next(records, None)
        if header is None:
            return
        twice = {name for name in header if header.count(name) > 1}
        if twice:
            refuse_file(file, "duplicate_key", f"rename one of the columns {', '.join(twice)}")
        converted = [name for name in header if name in _CONVERTED_COLUMNS]
        number = 0
        while True:
            lines.start_record()
            try:
                fields = next(records, None)
            except csv.Error as error:
                number += 1
                yield SourceRow(
                    number, lines.original, refused=RowRefused("column_count", str(error))
                )
                continue
            if fields is None:
                return
            number += 1
            yield _csv_row(number, header, converted, fields, lines)


def _csv_row(
    number: int,
    header: list[str],
    converted: list[str],
    fields: list[str],
    lines: "_RecordLines",
) -> SourceRow:
    if not fields:
        return SourceRow(number, lines.original)
    try:
        if lines.is_exhausted:
            # The reader asks for another line only while a quote is open.
            raise RowRefused("unclosed_quote")
        if not lines.is_utf8:
            raise RowRefused("invalid_utf8")
        if len(fields) != len(header):
            raise RowRefused("column_count", f"{len(fields)} fields, not {len(header)}")
        values: dict[str, Any] = dict(zip(header, fields, strict=True))
        for name in converted:
            values[name] = _csv_value(name, values[name])
            if values[name] is None:
                del values[name]
    except RowRefused as refused:
        return SourceRow(number, lines.original, refused=refused)
    return SourceRow(number, lines.original, values)


def _csv_value(name: str, text: str) -> str | float | bool | None:
    """Return the value of a field; None means that an optional column has none here."""
    if name in _OPTIONAL_COLUMNS and not text.strip():
        return None
    if name == "label":
        return _LABELS.get(text.strip().lower(), text)
    if name not in _NUMBER_COLUMNS:
        return text
    try:
        number = float(text)
    except ValueError:
        return text
    if not math.isfinite(number):
        raise RowRefused("non_finite_number", name)
    return number


class _RecordLines(Iterable[str]):
    """Physical lines for the csv reader, which may take several for one record."""

    def __init__(self, runs: Iterator[LineRun], file: NamedFile, limits: RowLimits) -> None:
        self._texts: list[bytes] = []
        self._num_bytes = 0
        self.is_utf8 = True
        self.is_exhausted = False
        self._runs = runs
        self._file = file
        self._limits = limits

    def start_record(self) -> None:
        """Forget the lines of the record before."""
        self._texts.clear()
        self._num_bytes = 0
        self.is_utf8 = True

    @property
    def original(self) -> bytes:
        """The bytes of the record so far."""
        return b"\n".join([*self._texts, b""])

    def __iter__(self) -> Iterator[str]:
        longest = self._limits.max_line_bytes
        for text in (text for run in self._runs for text in run.text.split(b"\n")):
            self._texts.append(text)
            self._num_bytes += len(text) + 1
            if self._num_bytes > longest:
                refuse_file(
                    self._file, "line_too_long", "look for an open quote or raise max_line_bytes"
                )
            try:
                yield text.decode("utf-8") + "\n"
            except UnicodeDecodeError:
                self.is_utf8 = False
                yield text.decode("utf-8", "replace") + "\n"
        self.is_exhausted = True


def read_parquet(file: NamedFile, limits: RowLimits) -> Iterator[Block]:
    """Yield the rows of a Parquet file, numbered from 1, a batch in memory at a time.

    Raises:
        DataError: The file is no Parquet, or can't be read to its end.
    """
    del limits  # Parquet has no lines; the row checks bound its fields.
    with open_stream(file) as stream:
        if stream.read(4) != b"PAR1":
            refuse_file(file, "not_parquet", "look at what was downloaded")
    number = 1
    try:
        with _seekable(file) as whole, pq.ParquetFile(whole, buffer_size=_BUFFER_BYTES) as parquet:
            for batch in parquet.iter_batches(batch_size=_batch_rows(parquet.metadata)):
                yield ArrowBlock(number, batch)
                number += batch.num_rows
    except (pa.ArrowException, OSError):
        refuse_file(file, "corrupt_archive", "fetch it again")


def _batch_rows(metadata: pq.FileMetaData) -> int:
    """Return how many rows of a file a block has, by their mean size."""
    groups = range(metadata.num_row_groups)
    num_bytes = sum(metadata.row_group(group).total_byte_size for group in groups)
    fitting = int(BLOCK_BYTES * metadata.num_rows // max(1, num_bytes))
    return max(1, min(BLOCK_ROWS, fitting))


@contextmanager
def _seekable(file: NamedFile) -> Iterator[Path | IO[bytes]]:
    """The file where it lies or, since Parquet is read from its end, decompressed to disk."""
    if not file.compression:
        yield file.path
        return
    with TemporaryFile() as whole:
        with open_stream(file) as stream:
            shutil.copyfileobj(stream, whole)
        whole.seek(0)
        yield whole
