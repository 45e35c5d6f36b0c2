"""Records against the schemas: why each one is refused, and which flags it carries."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pandera.errors
import pandera.polars as pa
import polars as pl

from alignflow.data_validation.config import DataKind, RowLimits
from alignflow.data_validation.drafts import Draft, Turn
from alignflow.data_validation.frames import attribute_frame, record_frame, text_frame
from alignflow.data_validation.patterns import FLAGGED_PATTERNS
from alignflow.data_validation.private_data import PrivateCode, codes_under
from alignflow.data_validation.reasons import BEFORE_DATASET, FLAGS, RANK
from alignflow.data_validation.records import Records, Shape
from alignflow.data_validation.schemas import (
    attribute_schema,
    holds,
    length_schema,
    matches_where_it_counts,
    pattern_schema,
    record_schema,
    text_schema,
)
from alignflow.data_validation.screening import (
    doubtful_records,
    doubtful_turns,
    long_turns,
    suspicious_turns,
)

_NULL_CHECK = "not_nullable"
"""pandera's name for a null where the column has none."""
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
        self._texts = text_schema(limits)
        self._noted = codes_under(limits, "flag")
        self._lengths = length_schema(limits)
        self._patterns = pattern_schema(limits)
        self._records = record_schema(kind)
        self._attributes = attribute_schema()
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
            *_failures(self._texts, texts, "part"),
            *_failures(self._lengths, long, "part"),
            *_failures(self._patterns, suspicious, "part"),
            *_failures(self._records, frame, None),
            *_failures(self._attributes, attribute_frame(records), "name"),
        ]
        for row, failure in found:
            if row not in failures or RANK[failure.reason] < RANK[failures[row].reason]:
                failures[row] = failure
        return Judged(failures, _flags(suspicious, frame, records, self._noted))

    def _judge_shape(self, shape: Shape) -> bool:
        """Return whether texts that are good by themselves are so in the places of a shape."""
        parts = {name: [Turn(role, "text") for role in roles] for name, roles in shape.parts}
        records = Records.of([Draft(None, parts)])
        texts = text_frame(records, np.arange(len(records.contents)))
        return not any(_failures(self._texts, texts, "part"))


def _failures(
    schema: pa.DataFrameSchema, frame: pl.DataFrame, detail_column: str | None
) -> Iterator[tuple[int, Failure]]:
    """Validate a frame; yield which rows fail which rule."""
    if frame.is_empty():
        return
    try:
        schema.validate(frame, lazy=True)
    except pandera.errors.SchemaErrors as error:
        cases = error.failure_cases
        if cases["index"].null_count():
            # A column is missing or has another type: the frame is at fault, not its data.
            raise
    else:
        return
    at = cases["index"].to_list()
    rows = frame["row"].gather(at).to_list()
    details = frame[detail_column].gather(at).to_list() if detail_column else [None] * len(at)
    for row, detail, check in zip(rows, details, cases["check"], strict=True):
        yield row, Failure("null_value" if check == _NULL_CHECK else check, detail)


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
