"""Tokenised rows on disk: written once by one process, memory-mapped by every rank."""

import json
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from alignflow.jobs.run_folder import write_atomically
from alignflow.training.chat import TokenizedChat

_TOKENS, _LEARNT, _SUMMARY = "tokens.bin", "learnt.bin", "rows.json"
_STARTS, _SHARED, _LABELS = "starts.npy", "shared.npy", "labels.npy"
_MAX_NAMED = 1000


@dataclass(frozen=True)
class RowSummary:
    """What became of the rows of a split."""

    digest: str
    """SHA-256 of all that determined the tokens."""
    num_truncated: int
    """Rows that were cut at the longest length."""
    reasons: dict[str, int]
    """How many records were refused for each reason."""
    refused: tuple[dict[str, str], ...]
    """`id` and `reason` of the refused records, the first 1000 of them."""


@dataclass(frozen=True)
class TokenRows:
    """The rows of a split, one after another in two flat arrays.

    An item is what the data order shuffles: a row, or the two rows of a pair (the chosen one
    first), which always stay together.
    """

    tokens: NDArray[np.int32]
    is_learnt: NDArray[np.bool_]
    starts_R1: NDArray[np.int64]
    """[R + 1] where each row begins in the flat arrays; the last is their length."""
    shared_I: NDArray[np.int64]
    """[items] tokens with which the rows of an item all begin; a batch holds them once."""
    labels_IL: NDArray[np.float32]
    """[items, L] the numbers that an item is labelled with; L and their order are the kind's."""
    rows_per_item: int
    summary: RowSummary

    def __len__(self) -> int:
        """Number of items."""
        return self.num_rows // self.rows_per_item

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return len(self.starts_R1) - 1

    @cached_property
    def item_lengths(self) -> NDArray[np.int64]:
        """[items] tokens of each item, those that its rows share counted in each."""
        return np.diff(self.starts_R1[:: self.rows_per_item])

    @cached_property
    def packed_lengths(self) -> NDArray[np.int64]:
        """[items] tokens that each item takes in a batch."""
        return self.item_lengths - (self.rows_per_item - 1) * self.shared_I

    def unshared(self) -> Self:
        """Return the rows as nothing but wholes: a batch repeats what they share."""
        return replace(self, shared_I=np.zeros_like(self.shared_I))

    def singly(self) -> Self:
        """Return the rows as items of their own, that share nothing; their labels are left out."""
        return replace(
            self,
            rows_per_item=1,
            shared_I=np.zeros(self.num_rows, dtype=np.int64),
            labels_IL=np.empty((self.num_rows, 0), dtype=np.float32),
        )

    def row(self, index: int) -> TokenizedChat:
        """Return one row."""
        part = slice(self.starts_R1[index], self.starts_R1[index + 1])
        return TokenizedChat(self.tokens[part], self.is_learnt[part])

    def rows_of(self, items: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the rows of items, those of one item in a row."""
        first = items[:, None] * self.rows_per_item
        return (first + np.arange(self.rows_per_item)).reshape(-1)

    @classmethod
    def open(cls, folder: Path, *, digest: str, rows_per_item: int) -> Self | None:
        """Map the rows that a `RowWriter` completed, or return None where there are none.

        Args:
            folder: Where they were written.
            digest: What they must have been made of; others count as none.
            rows_per_item: 1, or 2 for pairs.
        """
        try:
            summary = json.loads((folder / _SUMMARY).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        if summary["digest"] != digest:
            return None
        return cls(
            tokens=_mapped(folder / _TOKENS, np.dtype(np.int32)),
            is_learnt=_mapped(folder / _LEARNT, np.dtype(np.bool_)),
            starts_R1=np.load(folder / _STARTS, allow_pickle=False),
            shared_I=np.load(folder / _SHARED, allow_pickle=False),
            labels_IL=np.load(folder / _LABELS, allow_pickle=False),
            rows_per_item=rows_per_item,
            summary=RowSummary(**{**summary, "refused": tuple(summary["refused"])}),
        )


class RowWriter:
    """Appends tokenised rows to a folder; they count once it was left without an error."""

    def __init__(self, folder: Path, digest: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name in (_SUMMARY, _TOKENS, _LEARNT):  # never write into a file that is mapped
            (folder / name).unlink(missing_ok=True)
        self._folder = folder
        self._digest = digest
        self._files = ExitStack()
        self._tokens = self._files.enter_context((folder / _TOKENS).open("wb"))
        self._is_learnt = self._files.enter_context((folder / _LEARNT).open("wb"))
        self._lengths: list[int] = []
        self._shared: list[int] = []
        self._labels: list[tuple[float, ...]] = []
        self._num_truncated = 0
        self._reasons: Counter[str] = Counter()
        self._refused: list[dict[str, str]] = []

    def __enter__(self) -> Self:
        """Return the writer itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        """Close the files and, after no error, write the summary that makes them count."""
        self._files.close()
        if kind is not None:
            return
        np.save(self._folder / _STARTS, np.cumsum([0, *self._lengths], dtype=np.int64))
        np.save(self._folder / _SHARED, np.array(self._shared, dtype=np.int64))
        num_labels = len(self._labels[0]) if self._labels else 0
        labels_IL = np.array(self._labels, np.float32).reshape(len(self._labels), num_labels)
        np.save(self._folder / _LABELS, labels_IL)
        summary = RowSummary(
            self._digest, self._num_truncated, dict(self._reasons), tuple(self._refused)
        )
        write_atomically(self._folder / _SUMMARY, json.dumps(asdict(summary)))

    def append(
        self, rows: Sequence[TokenizedChat], labels: tuple[float, ...] = (), *, num_truncated: int
    ) -> None:
        """Add the rows of an item, with the numbers it is labelled with."""
        for row in rows:
            self._tokens.write(row.tokens_T.tobytes())
            self._is_learnt.write(row.is_learnt_T.tobytes())
            self._lengths.append(len(row.tokens_T))
        self._shared.append(_num_shared(rows))
        self._labels.append(labels)
        self._num_truncated += num_truncated

    def refuse(self, record_id: str, reason: str) -> None:
        """Count a record that is left out; the first ones are kept by name."""
        self._reasons[reason] += 1
        if len(self._refused) < _MAX_NAMED:
            self._refused.append({"id": record_id, "reason": reason})


def _num_shared(rows: Sequence[TokenizedChat]) -> int:
    """Return with how many tokens all rows begin; 0 for a single row, which has nobody to share."""
    first, *others = (row.tokens_T for row in rows)
    if not others:
        return 0
    shared = min(len(tokens) for tokens in (first, *others))
    for tokens in others:
        differs = tokens[:shared] != first[:shared]
        shared = int(differs.argmax()) if differs.any() else shared
    return shared


def _mapped(path: Path, dtype: np.dtype[Any]) -> NDArray[Any]:
    # An empty file can't be mapped.
    return np.memmap(path, dtype=dtype, mode="r") if path.stat().st_size else np.empty(0, dtype)
