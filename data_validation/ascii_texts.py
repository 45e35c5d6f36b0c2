"""ASCII texts end to end as bytes: one pass over them tells what would else take a look at each."""

import string
from collections.abc import Sequence
from functools import cached_property
from itertools import compress
from typing import cast

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from alignflow.data_validation.text import ascii_normal_form

Indices = npt.NDArray[np.int64]

SEPARATOR = "\x80"
"""Stands behind each text. It is in none of them, nor in the normal form of one."""

WHITE = "\t\n\r "
CONTROLS = "".join(map(chr, range(32))).translate({ord(character): None for character in WHITE})
_CLASSES = (WHITE, CONTROLS, "<[{", "@", "=+-", ":", string.digits)
"""Characters that are told apart, each class by a bit; the others, mostly letters, have none."""
_BITS = bytes(
    sum(1 << bit for bit, characters in enumerate(_CLASSES) if chr(code) in characters)
    for code in range(256)
)
_FOLDED = b"".join(ascii_normal_form(bytes([code])) or b"\0" for code in range(256))
"""The normal form of each byte; 0 for one that has none."""
_NO_TEXT = "\xff"
"""Stands for what is no text: it is no ASCII either."""
_WORD_BYTES = 64
"""Bytes that white space is counted in at a time."""


def mask_of(characters: str) -> int:
    """Return the bits of the classes that the characters are of.

    Raises:
        ValueError: A character is of no class.
    """
    mask = 0
    for character in characters:
        if not (bits := _BITS[ord(character)]):
            raise ValueError(f"no class has the character {character!r}")
        mask |= bits
    return mask


class AsciiTexts:
    """The ASCII texts among those of a block, in order.

    Args:
        contents: All texts.
    """

    def __init__(self, contents: Sequence[str | None]) -> None:
        if None in contents:
            contents = [_NO_TEXT if text is None else text for text in contents]
        texts = cast("Sequence[str]", contents)
        is_ascii = np.fromiter(map(str.isascii, texts), dtype=bool, count=len(texts))
        self.indices: Indices = np.flatnonzero(is_ascii)
        """[texts] Which of the contents each is."""
        self.texts = list(texts if is_ascii.all() else compress(texts, is_ascii))
        self.lengths: Indices = np.fromiter(map(len, self.texts), dtype=np.int64, count=len(self))
        """[texts] How many bytes each has."""
        self._joined = SEPARATOR.join([*self.texts, ""]).encode("latin-1")
        self._starts = np.cumsum(self.lengths + 1) - self.lengths - 1

    def __len__(self) -> int:
        """Return the number of texts."""
        return len(self.indices)

    @cached_property
    def classes(self) -> npt.NDArray[np.uint8]:
        """[texts] The bits of the classes that each has a character of."""
        if not len(self):
            return np.zeros(0, dtype=np.uint8)
        classes: npt.NDArray[np.uint8] = np.bitwise_or.reduceat(self._byte_classes, self._starts)
        return classes

    @cached_property
    def ends_visibly(self) -> npt.NDArray[np.bool_]:
        """[texts] Whether the first and the last character are neither white space nor control."""
        if not len(self):
            return np.zeros(0, dtype=bool)
        ends = self._starts + np.maximum(self.lengths - 1, 0)
        at_ends = self._byte_classes[self._starts] | self._byte_classes[ends]
        ends_visibly: npt.NDArray[np.bool_] = (at_ends & mask_of(WHITE + CONTROLS)) == 0
        ends_visibly &= self.lengths > 0
        return ends_visibly

    @cached_property
    def most_white(self) -> Indices:
        """[texts] No fewer than the white space that each has, and hardly more."""
        num_words = -(-len(self._joined) // _WORD_BYTES)
        is_white = np.zeros(num_words * _WORD_BYTES, dtype=np.uint8)
        np.bitwise_and(self._byte_classes, mask_of(WHITE), out=is_white[: len(self._joined)])
        in_words = np.bitwise_count(np.packbits(is_white).view(np.uint64))
        before = np.concatenate([[0], np.cumsum(in_words, dtype=np.int64)])
        first = self._starts // _WORD_BYTES
        last = -(-(self._starts + self.lengths) // _WORD_BYTES)
        most: Indices = before[np.maximum(last, first)] - before[first]
        return most

    def normalised(self) -> bytes:
        """Return the normal forms of all texts, with `SEPARATOR` behind each."""
        # polars leaves bytes out by the word; `bytes.translate` looks at one after the other.
        folded = np.frombuffer(self._joined.translate(_FOLDED), dtype=np.uint8)
        kept: npt.NDArray[np.uint8] = pl.Series(folded).filter(folded != 0).to_numpy()
        return kept.tobytes()

    def column(self) -> pa.Array:
        """Return the texts as a column of Arrow."""
        offsets = np.concatenate([[0], np.cumsum(self.lengths)])
        buffers = [None, pa.py_buffer(offsets), pa.py_buffer("".join(self.texts).encode("ascii"))]
        return pa.LargeStringArray.from_buffers(len(self), *buffers[1:])

    @cached_property
    def _byte_classes(self) -> npt.NDArray[np.uint8]:
        return np.frombuffer(self._joined.translate(_BITS), dtype=np.uint8)
