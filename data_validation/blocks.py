"""Rows as they are handed on: some thousand that follow one another, not parsed yet where possible.

A block can be sent to another process, which parses it there.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, TypeVar, overload

import pyarrow as pa

from alignflow.data_validation.parsing import parse_flat_lines, parse_flat_objects, parse_object
from alignflow.data_validation.reasons import RowRefused
from alignflow.data_validation.source_row import SourceRow
from alignflow.data_validation.streams import Line, LineRun

BLOCK_ROWS = 4096
BLOCK_BYTES = 4 << 20
"""A half more would take 70 MB more in all processes, and spare no time."""
_PARSED_TOGETHER = 64
"""So many lines share one call of the parser where a block can't be parsed in one; a bad one among
them sends all to be parsed alone."""

_Item = TypeVar("_Item")


class Chunk(NamedTuple):
    """Rows of a block that follow one another."""

    indices: range
    values: list[dict[str, Any]] | None
    """What each holds, where all hold something; where not, `rows` tells of each."""
    rows: Iterable[SourceRow]


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

    def chunks(self) -> Iterator[Chunk]:
        """Yield all rows in order, as many at a time as are read together."""
        rows = list(self.rows())
        values = [row.values for row in rows if row.values is not None and not row.refused]
        yield Chunk(range(len(self)), values if len(values) == len(rows) else None, rows)


class Lines(Sequence[bytes]):
    """Lines that are taken apart only where one is asked for, so that they are sent as one text.

    Args:
        text: The lines, with an LF between one and the next.
        number: How many they are.
    """

    def __init__(self, text: bytes, number: int) -> None:
        self.text, self._number = text, number

    def __reduce__(self) -> tuple[Any, ...]:
        """Let them be pickled as they came."""
        return type(self), (self.text, self._number)

    def __len__(self) -> int:
        """Return the number of lines."""
        return self._number

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> list[bytes]: ...
    def __getitem__(self, index: int | slice) -> bytes | list[bytes]:
        """Return a line, or some."""
        return self._split[index]

    @cached_property
    def _split(self) -> list[bytes]:
        return self.text.split(b"\n")


@dataclass(frozen=True, slots=True)
class JsonBlock(Block):
    """Lines of JSON, or items of an array."""

    first_line: int
    texts: Sequence[bytes]
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

    def chunks(self) -> Iterator[Chunk]:
        """Yield all rows in order, those together that are parsed together."""
        if isinstance(self.texts, Lines) and self.is_complete:
            values = parse_flat_lines(self.texts.text)
            if values is not None:
                yield Chunk(range(len(self)), values, map(self.row, range(len(self))))
                return
        for start in range(0, len(self), _PARSED_TOGETHER):
            texts = self.texts[start : start + _PARSED_TOGETHER]
            indices = range(start, start + len(texts))
            values = None if self._is_cut(indices[-1]) else parse_flat_objects(texts)
            yield Chunk(indices, values, map(self.row, indices))

    def _is_cut(self, index: int) -> bool:
        return not self.is_complete and index == len(self.texts) - 1


@dataclass(frozen=True, slots=True)
class ParsedBlock(Block):
    """Rows that are parsed."""

    first_line: int
    parsed: list[SourceRow]

    def __reduce__(self) -> tuple[Any, ...]:
        """Let it be sent without the originals, which nobody needs who judges the rows."""
        outcomes = [(row.values, row.refused) for row in self.parsed]
        return _parsed_block, (self.first_line, outcomes)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.parsed)

    def row(self, index: int) -> SourceRow:
        """Return a row by its index, from 0."""
        return self.parsed[index]


def _parsed_block(
    first_line: int, outcomes: Iterable[tuple[dict[str, Any] | None, RowRefused | None]]
) -> ParsedBlock:
    rows = enumerate(outcomes, start=first_line)
    return ParsedBlock(
        first_line, [SourceRow(line, None, values, refused) for line, (values, refused) in rows]
    )


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


def line_blocks(runs: Iterable[LineRun], max_depth: int) -> Iterator[JsonBlock]:
    """Yield lines of JSON in blocks of bounded size."""
    for group in _groups(runs, lambda run: (run.number, len(run.text))):
        number = sum(run.number for run in group)
        lines = Lines(b"\n".join(run.text for run in group), number)
        yield JsonBlock(group[0].first, lines, max_depth, group[-1].is_complete)


def item_blocks(items: Iterable[Line], max_depth: int) -> Iterator[JsonBlock]:
    """Yield items of an array in blocks of bounded size."""
    for group in _groups(items, lambda item: (1, len(item.text))):
        texts = [item.text for item in group]
        last = group[-1]
        yield JsonBlock(group[0].number, texts, max_depth, last.is_complete, is_array=True)


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
