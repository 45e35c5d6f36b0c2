"""The normal forms of the texts of a block end to end, none of which is an object of its own."""

from collections.abc import Sequence
from typing import overload

import numpy as np

from alignflow.data_validation.ascii_texts import SEPARATOR, AsciiTexts, Indices
from alignflow.data_validation.text import normalised

_END = b"\0"
"""Stands behind the normal form of a text that is not ASCII, and is in none."""


class NormalTexts(Sequence[bytes]):
    """The normal form of each text, in UTF-8; it may be empty.

    Args:
        contents: All texts.
        ascii_texts: Those in ASCII.
        others: [others] Which of the contents are not ASCII, or none at all.
    """

    def __init__(
        self, contents: Sequence[str | None], ascii_texts: AsciiTexts, others: Indices
    ) -> None:
        in_ascii = ascii_texts.normalised()
        rest = [normalised(contents[index] or "") for index in others.tolist()]
        self.joined = b"".join([in_ascii, *(text + _END for text in rest)])
        """Those in ASCII, then the others, with one byte behind each that is in none."""
        sizes = np.fromiter(map(len, rest), dtype=np.int64, count=len(rest)) + len(_END)
        is_end = np.frombuffer(in_ascii, dtype=np.uint8) == ord(SEPARATOR)
        ends = np.concatenate([np.flatnonzero(is_end), len(in_ascii) + np.cumsum(sizes) - 1])
        self._ends_as_joined = ends
        self._index_as_joined = np.concatenate([ascii_texts.indices, others])
        order = np.argsort(self._index_as_joined)
        self._starts, self._ends = np.concatenate([[0], ends[:-1] + 1])[order], ends[order]

    def __len__(self) -> int:
        """Return the number of texts."""
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> list[bytes]: ...
    def __getitem__(self, index: int | slice) -> bytes | list[bytes]:
        """Return the normal form of a text, or of some."""
        if isinstance(index, slice):
            return self.of(np.arange(len(self))[index])
        return self.joined[self._starts[index] : self._ends[index]]

    def of(self, indices: Indices) -> list[bytes]:
        """Return the normal forms of some texts."""
        places = zip(self._starts[indices].tolist(), self._ends[indices].tolist(), strict=True)
        return [self.joined[start:end] for start, end in places]

    @property
    def lengths(self) -> Indices:
        """[texts] How many bytes each has."""
        lengths: Indices = self._ends - self._starts
        return lengths

    def index_at(self, place: int) -> int:
        """Return which text has the byte at a place of `joined`."""
        return int(self._index_as_joined[np.searchsorted(self._ends_as_joined, place)])
