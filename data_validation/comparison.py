"""What only a comparison tells: duplicates, contradictions, leaks between splits, benchmarks."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Self

import polars as pl

from alignflow.data_validation.drafts import Draft, Turn
from alignflow.data_validation.text import hash_of, normalised, prompt_key, trimmed

MIN_EMBEDDED_WORDS = 6
"""A benchmark text of fewer words only counts where it is a whole turn."""


class RowKeys(NamedTuple):
    """Hashes by which a row is compared with others."""

    row: int
    """Of the conversation, or of the prompt and its pair."""
    swapped: int | None
    """Of the prompt and the pair the other way round."""
    labels: int
    """Of the attributes, or of the label of an unpaired response."""
    prompt: int
    id: int | None
    conflict: str
    """Reason code where an earlier row is the same with other labels."""

    @classmethod
    def of(cls, draft: Draft) -> Self:
        """Return the keys of a draft that is in order otherwise."""
        labels = (f"{name}={value}" for name, value in sorted(draft.attributes.items()))
        is_unpaired = draft.label is not None
        return cls(
            row=row_hash(draft),
            swapped=row_hash(draft, is_swapped=True) if "rejected" in draft.parts else None,
            labels=hash_of(str(draft.label)) if is_unpaired else hash_of(*labels),
            prompt=prompt_hash(draft.prompt),
            id=None if draft.id is None else hash_of(draft.id),
            conflict="conflicting_label" if is_unpaired else "conflicting_attributes",
        )


class SeenRows:
    """Keys of the rows accepted so far: some 250 bytes a row in place of its texts."""

    def __init__(self) -> None:
        self._labels: dict[int, int] = {}  # of each row
        self._prompts: set[int] = set()
        self._ids: set[int] = set()

    def start_file(self) -> None:
        """Forget the ids: they name rows of one file."""
        self._ids.clear()

    def find(self, keys: RowKeys) -> str | None:
        """Return the reason code if the row repeats or contradicts an accepted one."""
        labels = self._labels.get(keys.row)
        if labels is not None:
            return "duplicate_row" if labels == keys.labels else keys.conflict
        if keys.swapped in self._labels:
            return "conflicting_preference"
        if keys.id in self._ids:
            return "duplicate_id"
        return None

    def has_prompt(self, keys: RowKeys) -> bool:
        """Say whether an accepted row has the same prompt, in its normal form."""
        return keys.prompt in self._prompts

    def add(self, keys: RowKeys) -> None:
        """Remember an accepted row."""
        self._labels[keys.row] = keys.labels
        self._prompts.add(keys.prompt)
        if keys.id is not None:
            self._ids.add(keys.id)


def prompt_hash(prompt: Sequence[Turn]) -> int:
    """Return a hash of the prompt's roles and texts in their normal form."""
    return hash_of(
        *(part for turn in prompt for part in (turn.role, prompt_key(turn.content or "")))
    )


def row_hash(draft: Draft, *, is_swapped: bool = False) -> int:
    """Return a hash of a conversation, or of a prompt and its pair, which may be swapped."""
    parts = list(draft.parts.values())
    if is_swapped:
        parts[-2:] = reversed(parts[-2:])
    return hash_of(
        *(text for turns in parts for turn in turns for text in (turn.role, _text(turn)))
    )


def _text(turn: Turn) -> str:
    return trimmed(turn.content or "")


class BenchmarkTexts:
    """Finds items of benchmarks in training texts, whatever their case and punctuation."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._whole: set[str] = set()
        embedded: set[str] = set()
        for text in texts:
            key = normalised(text)
            if key:
                is_long = len(text.split()) >= MIN_EMBEDDED_WORDS
                (embedded if is_long else self._whole).add(key)
        self._embedded = sorted(embedded)

    def find(self, drafts: Sequence[Draft]) -> list[bool]:
        """Return for each draft whether one of its turns is or holds an item."""
        is_found = [False] * len(drafts)
        if not (self._embedded or self._whole):
            return is_found
        rows = [
            (row, normalised(turn.content or ""))
            for row, draft in enumerate(drafts)
            for turns in draft.parts.values()
            for turn in turns
        ]
        for (row, text), holds in zip(rows, self._hold_items([t for _, t in rows]), strict=True):
            is_found[row] |= holds or text in self._whole
        return is_found

    def _hold_items(self, texts: list[str]) -> list[bool]:
        if not self._embedded:
            return [False] * len(texts)
        return pl.Series(texts, dtype=pl.String).str.contains_any(self._embedded).to_list()
