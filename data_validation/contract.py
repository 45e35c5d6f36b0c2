"""Records against the schemas: why each one is refused, and which flags it carries."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pandera.errors
import pandera.polars as pa
import polars as pl

from alignflow.data_validation.config import DataKind, RowLimits
from alignflow.data_validation.frames import attribute_frame, record_frame, text_frame
from alignflow.data_validation.patterns import FLAGGED_PATTERNS
from alignflow.data_validation.private_data import PrivateCode, codes_under
from alignflow.data_validation.reasons import BEFORE_DATASET, FLAGS, RANK
from alignflow.data_validation.records import Records
from alignflow.data_validation.schemas import (
    attribute_schema,
    holds,
    is_where,
    length_schema,
    long_texts,
    pattern_schema,
    record_schema,
    suspicious_texts,
    text_schema,
)

_NULL_CHECK = "not_nullable"
"""pandera's name for a null where the column has none."""


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
    """The schemas of one kind of rows: pandera checks every row of every frame.

    Most texts are short and match no pattern, which one look tells: the costly schemas are for the
    others alone.
    """

    def __init__(self, kind: DataKind, limits: RowLimits) -> None:
        self._limits = limits
        self._texts = text_schema(limits)
        self._noted = codes_under(limits, "flag")
        self._lengths = length_schema(limits)
        self._patterns = pattern_schema(limits)
        self._records = record_schema(kind)
        self._attributes = attribute_schema()

    def judge(self, records: Records) -> Judged:
        """Return the first failure of each record that has one, and the flags of all."""
        if not len(records):
            return Judged({}, {})
        texts, frame = text_frame(records), record_frame(records)
        long = long_texts(texts, self._limits)
        suspicious = suspicious_texts(texts)
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
    matches = suspicious.select(
        "row",
        *(
            (is_where(where) & pl.col("content").str.contains(pattern)).alias(code)
            for code, where, pattern in FLAGGED_PATTERNS
        ),
        *(holds(code).alias(code) for code in noted),
    )
    ties = frame.select("row", score_tie=pl.col("score_chosen") == pl.col("score_rejected"))
    for found in (matches, ties):
        for code in found.columns[1:]:
            for row in found.filter(pl.col(code))["row"].unique():
                flags.setdefault(row, set()).add(code)
    for row in records.implicit_prompts:
        flags.setdefault(row, set()).add("implicit_prompt")
    return flags


def in_order(flags: set[str]) -> list[str]:
    """Return flags in the order of `FLAGS`."""
    return [code for code in FLAGS if code in flags]
