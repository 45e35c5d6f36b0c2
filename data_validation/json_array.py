"""The items of a JSON array as byte strings, found without parsing the whole array."""

import re
from collections.abc import Iterator
from itertools import chain
from typing import IO

from alignflow.data_validation.streams import BLOCK_BYTES, Line, NamedFile, refuse_file

_OUTSIDE = re.compile(rb'["\[\]{},]')
_INSIDE = re.compile(rb'["\\]')
_BOM = b"\xef\xbb\xbf"


def read_array_items(stream: IO[bytes], file: NamedFile, max_item_bytes: int) -> Iterator[Line]:
    """Yield the items of a JSON array, numbered from 1, as the bytes between their commas.

    Only strings and brackets are understood here; whether an item is JSON its parser says. What
    stands behind the array comes as one more item, which is no JSON.

    Raises:
        DataError: An item is longer than `max_item_bytes`.
    """
    scanner = _Scanner()
    number = 0
    start = stream.read(len(_BOM)).removeprefix(_BOM)
    for block in chain([start], iter(lambda: stream.read(BLOCK_BYTES), b"")):
        for item in scanner.feed(block):
            number += 1
            _check_length(item, number, file, max_item_bytes)
            yield Line(number, item, is_complete=True)
        _check_length(scanner.pending, number + 1, file, max_item_bytes)
    if not scanner.is_closed or scanner.pending.strip():
        yield Line(number + 1, bytes(scanner.pending) or b"[", is_complete=scanner.is_closed)


def _check_length(
    item: bytes | bytearray, number: int, file: NamedFile, max_item_bytes: int
) -> None:
    if len(item) > max_item_bytes:
        refuse_file(
            file,
            "line_too_long",
            f"item {number} is longer than max_line_bytes ({max_item_bytes}); raise the limit",
        )


class _Scanner:
    """Cuts an array at its commas, block by block."""

    def __init__(self) -> None:
        self.pending = bytearray()
        """Bytes of the item that is not over yet."""
        self.is_closed = False
        """Whether the closing bracket of the array was seen."""
        self._depth = 0
        self._in_string = False
        self._at = 0  # how far `pending` is scanned

    def feed(self, block: bytes) -> Iterator[bytes]:
        """Take another block; yield the items that end in it."""
        self.pending += block
        while not self.is_closed:
            pattern = _INSIDE if self._in_string else _OUTSIDE
            match = pattern.search(self.pending, self._at)
            if match is None:
                self._at = len(self.pending)
                return
            if match[0] == b"\\":
                if match.end() == len(self.pending):
                    self._at = match.start()  # what it escapes comes with the next block
                    return
                self._at = match.end() + 1
                continue
            self._at = match.end()
            if match[0] == b'"':
                self._in_string = not self._in_string
            elif item := self._bracket_or_comma(match[0]):
                yield item

    def _bracket_or_comma(self, character: bytes) -> bytes | None:
        """Follow the nesting; return the item that ends here, if one does."""
        if character in b"[{":
            self._depth += 1
            if self._depth == 1:
                self._cut()
        elif character in b"]}":
            self._depth -= 1
            if self._depth == 0:
                self.is_closed = True
                item = self._cut()
                return item if item.strip() else None
        elif self._depth == 1:
            item = self._cut()
            return item if item.strip() else b","  # nothing between two commas: no JSON
        return None

    def _cut(self) -> bytes:
        """Take what was scanned off `pending`, without its last character."""
        item = bytes(self.pending[: self._at - 1])
        del self.pending[: self._at]
        self._at = 0
        return item
