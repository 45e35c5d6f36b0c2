"""Drafted rows as columns: what is checked of many rows at once.

A row of a set is one of few shapes: which parts it has, and who speaks in each. What follows from
the shape alone is worked out once for all rows that have it; of each row only its texts, its id and
its numbers are kept.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Self

import numpy as np

from alignflow.data_validation.ascii_texts import AsciiTexts, Indices
from alignflow.data_validation.drafts import ASSISTANT, USER, Draft
from alignflow.data_validation.normal_texts import NormalTexts
from alignflow.data_validation.text import trimmed


@dataclass(frozen=True)
class Shape:
    """The parts of a record in order, each with the roles of its turns."""

    parts: tuple[tuple[str, tuple[str, ...]], ...]

    @cached_property
    def roles(self) -> tuple[str, ...]:
        """Of all turns."""
        return tuple(role for _, roles in self.parts for role in roles)

    @cached_property
    def key(self) -> bytes:
        """What tells rows apart that have the same texts."""
        return " ".join(self.roles).encode()

    @cached_property
    def prompt_key(self) -> bytes:
        """What tells prompts apart that have the same texts."""
        return " ".join(self.roles[: self.num_prompt_turns]).encode()

    @cached_property
    def is_preference(self) -> bool:
        """Whether the last two turns are a pair of answers."""
        return [(name, len(roles)) for name, roles in self.parts[1:]] == [
            ("chosen", 1),
            ("rejected", 1),
        ]

    @cached_property
    def num_prompt_turns(self) -> int:
        """How many turns are answered: those of the prompt, or all but the last message."""
        name, roles = self.parts[0]
        return len(roles) if name == "prompt" else max(len(roles) - 1, 0)

    def last_turn_of(self, *names: str) -> int:
        """Return the index among all turns of the last one of the first such part, or -1."""
        end = 0
        for name, roles in self.parts:
            end += len(roles)
            if name in names:
                return end - 1 if roles else -1
        return -1


PAIR = Shape((("prompt", (USER,)), ("chosen", (ASSISTANT,)), ("rejected", (ASSISTANT,))))
"""The commonest shape of a preference: a question and two answers."""

Scores = tuple[float | None, float | None]


class Pair(NamedTuple):
    """A preference of the shape `PAIR`, without a draft of its own."""

    prompt: str
    chosen: str
    rejected: str
    id: str | None = None
    scores: Scores = (None, None)


class Records:
    """Columns of drafted rows of one kind, in order."""

    def __init__(self) -> None:
        self.shapes: list[Shape] = [PAIR]
        """The shapes that occur, and `PAIR`."""
        self.contents: list[str | None] = []
        """Of every turn of every record."""
        self.ids: list[str | None] = []
        self.scores: list[Scores] = []
        self.labels: dict[int, bool | None] = {}
        """Of records that are no pairs, by index, as all that few have."""
        self.attributes: dict[int, dict[str, float | None]] = {}
        self.implicit_prompts: set[int] = set()
        self.lone_surrogates: set[int] = set()
        self._numbers = {PAIR: 0}
        self._shape_of: list[int] = []

    @classmethod
    def of(cls, drafts: Iterable[Draft]) -> Self:
        """Return the columns of drafts."""
        records = cls()
        for draft in drafts:
            records.add(draft)
        return records

    def __len__(self) -> int:
        """Return the number of records."""
        return len(self._shape_of)

    def add_pairs(self, texts: Sequence[str]) -> None:
        """Append pairs without ids and scores, by their prompts, chosen and rejected texts."""
        number = len(texts) // 3
        self._shape_of += [0] * number
        self.contents += texts
        self.ids += [None] * number
        self.scores += [(None, None)] * number

    def add_pair(self, pair: Pair) -> None:
        """Append a pair."""
        self._shape_of.append(0)
        self.contents += pair[:3]
        self.ids.append(pair.id)
        self.scores.append(pair.scores)

    def add(self, draft: Draft) -> None:
        """Append a draft."""
        index = len(self)
        shape = Shape(
            tuple((name, tuple(turn.role for turn in turns)) for name, turns in draft.parts.items())
        )
        number = self._numbers.setdefault(shape, len(self.shapes))
        if number == len(self.shapes):
            self.shapes.append(shape)
        self._shape_of.append(number)
        self.contents += [turn.content for turns in draft.parts.values() for turn in turns]
        self.ids.append(draft.id)
        self.scores.append(draft.scores)
        if draft.label is not None:
            self.labels[index] = draft.label
        if draft.attributes:
            self.attributes[index] = draft.attributes
        if draft.is_prompt_implicit:
            self.implicit_prompts.add(index)
        if draft.has_lone_surrogate:
            self.lone_surrogates.add(index)

    def contents_of(self, index: int) -> list[str | None]:
        """Return what the turns of a record say."""
        start = self.starts[index]
        return self.contents[start : start + self.num_turns[index]]

    @cached_property
    def shape_of(self) -> Indices:
        """[records] Which of `shapes` each record has."""
        return np.array(self._shape_of, dtype=np.int64)

    @cached_property
    def num_turns(self) -> Indices:
        """[records] How many turns each has."""
        return np.array([len(shape.roles) for shape in self.shapes])[self.shape_of]

    @cached_property
    def starts(self) -> Indices:
        """[records] Index of the first turn of each in `contents`."""
        return np.cumsum(self.num_turns) - self.num_turns

    @cached_property
    def record_of(self) -> Indices:
        """[turns] Which record each turn is of."""
        return np.repeat(np.arange(len(self)), self.num_turns)

    @cached_property
    def fewest_turns(self) -> Indices:
        """[records] How many turns the part of each has that has fewest."""
        fewest = [min(len(roles) for _, roles in shape.parts) for shape in self.shapes]
        return np.array(fewest)[self.shape_of]

    @cached_property
    def last_turns(self) -> dict[str, Indices]:
        """[records] Which turn asks, answers and is the worse answer; -1 where there is none."""
        places = {
            "question": [shape.num_prompt_turns - 1 for shape in self.shapes],
            "response": [
                shape.last_turn_of("chosen", "response", "messages") for shape in self.shapes
            ],
            "rejected": [shape.last_turn_of("rejected") for shape in self.shapes],
        }
        in_record = {name: np.array(at)[self.shape_of] for name, at in places.items()}
        return {name: np.where(at < 0, -1, self.starts + at) for name, at in in_record.items()}

    @cached_property
    def ascii(self) -> AsciiTexts:
        """The contents that are ASCII."""
        return AsciiTexts(self.contents)

    @cached_property
    def not_ascii(self) -> Indices:
        """The turns whose content is not ASCII, or none at all."""
        is_other = np.ones(len(self.contents), dtype=bool)
        is_other[self.ascii.indices] = False
        return np.flatnonzero(is_other)

    @cached_property
    def trimmed(self) -> list[str | None]:
        """Every content in NFC without white space around it."""
        texts = list(self.contents)
        to_trim = self.ascii.indices[~self.ascii.ends_visibly].tolist()
        for turn in [*to_trim, *self.not_ascii.tolist()]:
            text = texts[turn]
            texts[turn] = None if text is None else trimmed(text)
        return texts

    @cached_property
    def normalised(self) -> NormalTexts:
        """Every content in its normal form, which may be empty, in UTF-8."""
        return NormalTexts(self.contents, self.ascii, self.not_ascii)
