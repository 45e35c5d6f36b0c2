"""Rows as they are handed on: some thousand that follow one another, not parsed yet where possible.

A block can be sent to another process, which parses it there.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow as pa

from alignflow.data_validation.parsing import parse_object
from alignflow.data_validation.reasons import RowRefused
from alignflow.data_validation.source_row import SourceRow
from alignflow.data_validation.streams import LineRun

BLOCK_ROWS = 6144
BLOCK_BYTES = 6 << 20

_Item = TypeVar("_Item")


class Block(ABC):
    """Rows that follow one another in one file."""

    first_line: int
    """Number of the first row; the others follow without a gap."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of rows."""

    @abstractmethod
    def row(self, index: int) -> SourceRow:
        """Return a row by its index, from 0."""

    def rows(self) -> Iterator[SourceRow]:
        """Yield all rows in order."""
        return map(self.row, range(len(self)))


@dataclass(frozen=True, slots=True)
class JsonBlock(Block):
    """Lines of JSON, or items of an array."""

    first_line: int
    texts: list[bytes]
    max_depth: int
    is_complete: bool = True
    """Whether the end of the last one was seen."""
    is_array: bool = False

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.texts)

    def row(self, index: int) -> SourceRow:
        """Return a row by its index, from 0."""
        text, line = self.texts[index], self.first_line + index
        if self.is_array and self._is_cut(index):
            # The array never closes: this is the last item at best in part, even where it parses.
            return SourceRow(line, text, refused=RowRefused("truncated_last_line"))
        try:
            return SourceRow(line, text, parse_object(text, self.max_depth))
        except RowRefused as refused:
            if not text.strip():
                return SourceRow(line, text)
            if refused.reason == "invalid_json" and self._is_cut(index):
                refused = RowRefused("truncated_last_line")
            return SourceRow(line, text, refused=refused)

    def _is_cut(self, index: int) -> bool:
        return not self.is_complete and index == len(self.texts) - 1


@dataclass(frozen=True, slots=True)
class ParsedBlock(Block):
    """Rows that are parsed."""

    first_line: int
    parsed: list[SourceRow]

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.parsed)

    def row(self, index: int) -> SourceRow:
        """Return a row by its index, from 0."""
        return self.parsed[index]


@dataclass(frozen=True, slots=True)
class ArrowBlock(Block):
    """Rows of a table."""

    first_line: int
    batch: pa.RecordBatch

    def __len__(self) -> int:
        """Return the number of rows."""
        return int(self.batch.num_rows)

    def row(self, index: int) -> SourceRow:
        """Return a row by its index, from 0."""
        values: dict[str, Any] = {}
        for name, column in zip(self.batch.schema.names, self.batch.columns, strict=True):
            try:
                values[name] = column[index].as_py()
            except UnicodeDecodeError:
                refused = RowRefused("invalid_utf8", name)
                return SourceRow(self.first_line + index, None, values, refused)
        return SourceRow.of_values(self.first_line + index, values)

    def rows(self) -> Iterator[SourceRow]:
        """Yield all rows in order."""
        names = self.batch.schema.names
        try:
            columns = [column.to_pylist() for column in self.batch.columns]
        except UnicodeDecodeError:
            yield from Block.rows(self)
            return
        for index in range(len(self)):
            values = dict(zip(names, [column[index] for column in columns], strict=True))
            yield SourceRow.of_values(self.first_line + index, values)


def json_blocks(
    runs: Iterable[LineRun], max_depth: int, *, is_array: bool = False
) -> Iterator[JsonBlock]:
    """Yield lines, or items of an array, in blocks of bounded size."""
    for group in _groups(runs, lambda run: (len(run.texts), sum(map(len, run.texts)))):
        texts = [text for run in group for text in run.texts]
        yield JsonBlock(group[0].first, texts, max_depth, group[-1].is_complete, is_array)


def parsed_blocks(rows: Iterable[SourceRow]) -> Iterator[ParsedBlock]:
    """Yield parsed rows in blocks of bounded size."""
    for group in _groups(rows, lambda row: (1, len(row.original or b""))):
        yield ParsedBlock(group[0].line, group)


def _groups(
    items: Iterable[_Item], size_of: Callable[[_Item], tuple[int, int]]
) -> Iterator[list[_Item]]:
    """Yield items in groups of about so many rows or bytes, by the rows and bytes of each."""
    group: list[_Item] = []
    num_rows = num_bytes = 0
    for item in items:
        rows, size = size_of(item)
        group.append(item)
        num_rows += rows
        num_bytes += size
        if num_rows >= BLOCK_ROWS or num_bytes >= BLOCK_BYTES:
            yield group
            group, num_rows, num_bytes = [], 0, 0
    if group:
        yield group
