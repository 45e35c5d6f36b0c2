"""What only a comparison tells: duplicates, contradictions, leaks between splits, benchmarks."""

from collections.abc import Iterable, Sequence

import polars as pl

from alignflow.data_validation.config import DataKind
from alignflow.data_validation.drafts import Draft, Turn
from alignflow.data_validation.text import hash_of, normalised, prompt_key, trimmed

MIN_EMBEDDED_WORDS = 6
"""A benchmark text of fewer words only counts where it is a whole turn."""


class SeenRows:
    """Hashes of the rows accepted so far; 8 bytes a hash, so that millions of rows fit."""

    def __init__(self, kind: DataKind) -> None:
        self._kind = kind
        self._rows: dict[int, int] = {}  # conversation or pair -> its attributes
        self._prompts: set[int] = set()
        self._ids: set[int] = set()

    def start_file(self) -> None:
        """Forget the ids: they name rows of one file."""
        self._ids.clear()

    def find(self, draft: Draft) -> str | None:
        """Return the reason code if the draft repeats or contradicts an accepted row."""
        known = self._rows.get(row_hash(draft))
        if known is not None:
            is_same = known == _label_hash(draft)
            return "duplicate_row" if is_same else "conflicting_attributes"
        if self._kind == "preference" and row_hash(draft, is_swapped=True) in self._rows:
            return "conflicting_preference"
        if draft.id is not None and hash_of(draft.id) in self._ids:
            return "duplicate_id"
        return None

    def has_prompt(self, draft: Draft) -> bool:
        """Say whether an accepted row has the same prompt, in its normal form."""
        return prompt_hash(draft.prompt) in self._prompts

    def add(self, draft: Draft) -> None:
        """Remember an accepted row."""
        self._rows[row_hash(draft)] = _label_hash(draft)
        self._prompts.add(prompt_hash(draft.prompt))
        if draft.id is not None:
            self._ids.add(hash_of(draft.id))


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


def _label_hash(draft: Draft) -> int:
    return hash_of(*(f"{name}={value}" for name, value in sorted(draft.attributes.items())))


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
