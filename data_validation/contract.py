"""Records against the schemas: why each one is refused, and which flags it carries."""

from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import polars as pl

from alignflow.data_validation.config import DataKind, RowLimits
from alignflow.data_validation.drafts import Draft, Turn
from alignflow.data_validation.frames import attribute_frame, record_frame, text_frame
from alignflow.data_validation.matching import holds, matches_where_it_counts
from alignflow.data_validation.patterns import FLAGGED_PATTERNS
from alignflow.data_validation.private_data import PrivateCode, codes_under
from alignflow.data_validation.reasons import BEFORE_DATASET, FLAGS, RANK
from alignflow.data_validation.records import PAIR, Records, Shape
from alignflow.data_validation.screening import (
    doubtful_records,
    doubtful_turns,
    long_turns,
    suspicious_turns,
)

if TYPE_CHECKING:
    from alignflow.data_validation.schemas import SchemaName, Schemas

_SHAPES_REMEMBERED = 4096


class Failure(NamedTuple):
    """Why a record is refused."""

    reason: str
    """A key of `REASONS`."""
    detail: str | None
    """Which part of the record fails."""

    @property
    def is_policy(self) -> bool:
        """Whether the comparison with other rows comes first."""
        return RANK[self.reason] > BEFORE_DATASET


class Judged(NamedTuple):
    """What the contract says of records, by their index; those it accepts have no failure."""

    failures: dict[int, Failure]
    flags: dict[int, set[str]]


class Contract:
    """The schemas of one kind of rows: pandera checks every row that may fail one.

    Most can't, which one look tells: the schemas are for the others alone.
    """

    def __init__(self, kind: DataKind, limits: RowLimits) -> None:
        self._kind, self._limits = kind, limits
        self._noted = codes_under(limits, "flag")
        self._passes = lru_cache(_SHAPES_REMEMBERED)(self._judge_shape)

    def judge(self, records: Records) -> Judged:
        """Return the first failure of each record that has one, and the flags of all."""
        if not len(records):
            return Judged({}, {})
        texts = text_frame(records, doubtful_turns(records, self._limits, self._passes))
        long = text_frame(records, long_turns(records, self._limits))
        suspicious = text_frame(records, suspicious_turns(records))
        frame = record_frame(records, doubtful_records(records, self._kind))
        failures: dict[int, Failure] = {}
        found = [
            *self._failures("texts", texts, "part"),
            *self._failures("lengths", long, "part"),
            *self._failures("patterns", suspicious, "part"),
            *self._failures("records", frame, None),
            *self._failures("attributes", attribute_frame(records), "name"),
        ]
        for row, failure in found:
            if row not in failures or RANK[failure.reason] < RANK[failures[row].reason]:
                failures[row] = failure
        return Judged(failures, _flags(suspicious, frame, records, self._noted))

    @cached_property
    def _schemas(self) -> "Schemas":
        # Only now: a process whose rows are all beyond doubt never imports pandera.
        from alignflow.data_validation.schemas import Schemas

        return Schemas.of(self._kind, self._limits)

    def _failures(
        self, schema: "SchemaName", frame: pl.DataFrame, detail_column: str | None
    ) -> Iterator[tuple[int, Failure]]:
        """Validate a frame; yield which records fail which rule."""
        if frame.is_empty():
            return
        from alignflow.data_validation.schemas import failing_rows

        for row, reason, detail in failing_rows(
            getattr(self._schemas, schema), frame, detail_column
        ):
            yield row, Failure(reason, detail)

    def _judge_shape(self, shape: Shape) -> bool:
        """Return whether texts that are good by themselves are so in the places of a shape."""
        if shape == PAIR:
            # By far the commonest, and right; to ask the schema would take pandera's import.
            return True
        parts = {name: [Turn(role, "text") for role in roles] for name, roles in shape.parts}
        records = Records.of([Draft(None, parts)])
        texts = text_frame(records, np.arange(len(records.contents)))
        return not any(self._failures("texts", texts, "part"))


def _flags(
    suspicious: pl.DataFrame, frame: pl.DataFrame, records: Records, noted: Sequence[PrivateCode]
) -> dict[int, set[str]]:
    """Return the flags of the records that have some."""
    flags: dict[int, set[str]] = {}
    matches = [(each.code, suspicious, matches_where_it_counts(each)) for each in FLAGGED_PATTERNS]
    matches += [(code, suspicious, holds(code)) for code in noted]
    matches.append(("score_tie", frame, pl.col("score_chosen") == pl.col("score_rejected")))
    for code, looked_at, is_flagged in matches if len(suspicious) or len(frame) else ():
        for row in looked_at.filter(is_flagged)["row"].unique():
            flags.setdefault(row, set()).add(code)
    for row in records.implicit_prompts:
        flags.setdefault(row, set()).add("implicit_prompt")
    return flags


def in_order(flags: set[str]) -> list[str]:
    """Return flags in the order of `FLAGS`."""
    return [code for code in FLAGS if code in flags]
