"""Items of benchmarks in training texts."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from alignflow.data_validation.records import Records
from alignflow.data_validation.text import normalised

MIN_EMBEDDED_WORDS = 6
"""A benchmark text of fewer words only counts where it is a whole turn."""

_STRIDE = 8
_MIN_TABLE_BITS, _MAX_TABLE_BITS = 14, 22
_SLOTS_PER_WINDOW = 16
_LOOKED_UP_TOGETHER = 1 << 14
"""Windows of a text whose look-up takes no more memory than the cache of a core has."""
# Any odd numbers with about as many ones as zeros would do.
_FIRST, _SECOND = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)


class BenchmarkTexts:
    """Finds items of benchmarks in training texts, whatever their case and punctuation."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._whole: set[bytes] = set()
        embedded: set[bytes] = set()
        for text in texts:
            key = normalised(text)
            if key:
                is_long = len(text.split()) >= MIN_EMBEDDED_WORDS
                (embedded if is_long else self._whole).add(key)
        self._longest_whole = max(map(len, self._whole), default=0)
        self._windows = []
        for num_words in (2, 1):
            fitting = {key for key in embedded if len(key) >= _min_bytes(num_words)}
            if fitting:
                self._windows.append(_Windows(sorted(fitting), num_words))
            embedded -= fitting
        self._short = sorted(embedded)

    def find(self, records: Records) -> set[int]:
        """Return which records have a turn that is or holds an item."""
        texts = records.normalised
        short = np.flatnonzero(texts.lengths <= self._longest_whole).tolist()
        turns = {turn for turn in short if texts[turn] in self._whole}
        for item in self._short:
            turns.update(turn for turn, text in enumerate(texts) if item in text)
        for windows in self._windows:
            for item, at in windows.find(texts.joined):
                turn = texts.index_at(at)
                if item in texts[turn]:
                    turns.add(turn)
        return set(records.record_of[sorted(turns)].tolist())


class _Windows:
    """Tells where in a long text a string may be, by windows of one or two words of eight bytes.

    Wherever a string stands in the text, one of its first eight windows begins at a multiple of
    eight. So those of the strings are put into a table, and every eighth of the text is looked up.

    Args:
        strings: Each of `_min_bytes` or more.
        num_words: Words of a window; the more, the rarer is a wrong guess.
    """

    def __init__(self, strings: Sequence[bytes], num_words: int) -> None:
        self._num_words = num_words
        starts = [
            string[start : start + _STRIDE * num_words]
            for string in strings
            for start in range(_STRIDE)
        ]
        windows = self._windows(b"".join(starts))[::num_words]
        self._strings_at: dict[int, list[bytes]] = {}
        for number, window in enumerate(windows.tolist()):
            self._strings_at.setdefault(window, []).append(strings[number // _STRIDE])
        # Small enough for a core's cache where few are looked for. By two tables, with other bits
        # of a window's number, few windows pass by chance.
        bits = (_SLOTS_PER_WINDOW * len(windows)).bit_length()
        self._bits = min(max(bits, _MIN_TABLE_BITS), _MAX_TABLE_BITS)
        self._tables = np.zeros((2, 1 << self._bits), dtype=bool)
        for number, table in enumerate(self._tables):
            table[self._places(windows, number)] = True

    def find(self, text: bytes) -> Iterator[tuple[bytes, int]]:
        """Yield strings with places, of which one is in each string that the text holds."""
        step = _LOOKED_UP_TOGETHER * _STRIDE
        # The last window of a part begins in its last word, and may end in the next one.
        beyond = (self._num_words - 1) * _STRIDE
        for start in range(0, len(text), step):
            part = memoryview(text)[start : start + step + beyond]
            for string, at in self._find_in_part(part):
                yield string, start + at

    def _find_in_part(self, text: bytes | memoryview) -> Iterator[tuple[bytes, int]]:
        windows = self._windows(text)
        first, second = self._tables
        found = np.flatnonzero(first[self._places(windows, 0)])
        found = found[second[self._places(windows[found], 1)]]
        for window, at in zip(windows[found].tolist(), found.tolist(), strict=True):
            for string in self._strings_at.get(window, ()):
                yield string, at * _STRIDE

    def _windows(self, text: bytes | memoryview) -> npt.NDArray[np.uint64]:
        """Return a number for the window at each multiple of eight."""
        words = np.frombuffer(text, dtype="<u8", count=len(text) // _STRIDE)
        mixed: npt.NDArray[np.uint64] = words * _FIRST
        if self._num_words == 2:
            mixed = mixed[:-1]
            mixed += words[1:] * _SECOND
        return mixed

    def _places(self, windows: npt.NDArray[np.uint64], table: int) -> npt.NDArray[np.int64]:
        """Return where in a table each window is: by its highest bits, or by those below."""
        shifted = windows << np.uint64(table * self._bits)
        return (shifted >> np.uint64(64 - self._bits)).astype(np.int64)


def _min_bytes(num_words: int) -> int:
    return _STRIDE * num_words + _STRIDE - 1
