"""Drafts against the schemas: why each one is refused, and which flags it carries."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pandera.errors
import pandera.polars as pa
import polars as pl

from alignflow.data_validation.config import DataKind, RowLimits
from alignflow.data_validation.drafts import Draft
from alignflow.data_validation.frames import attribute_frame, record_frame, text_frame
from alignflow.data_validation.patterns import FLAGGED_PATTERNS
from alignflow.data_validation.private_data import PrivateCode, codes_under
from alignflow.data_validation.reasons import BEFORE_DATASET, FLAGS, RANK
from alignflow.data_validation.schemas import (
    attribute_schema,
    holds,
    is_where,
    record_schema,
    text_schema,
)

_NULL_CHECK = "not_nullable"
"""pandera's name for a null where the column has none."""


class Failure(NamedTuple):
    """Why a draft is refused."""

    reason: str
    """A key of `REASONS`."""
    detail: str | None
    """Which part of the record fails."""

    @property
    def is_policy(self) -> bool:
        """Whether the comparison with other rows comes first."""
        return RANK[self.reason] > BEFORE_DATASET


class Judged(NamedTuple):
    """What the contract says of some drafts, by their index; those it accepts have no failure."""

    failures: dict[int, Failure]
    flags: dict[int, set[str]]


class Contract:
    """The schemas of one kind of rows: pandera checks every row of every frame."""

    def __init__(self, kind: DataKind, limits: RowLimits) -> None:
        self._texts = text_schema(limits)
        self._noted = codes_under(limits, "flag")
        self._records = record_schema(kind)
        self._attributes = attribute_schema()

    def judge(self, drafts: Sequence[Draft]) -> Judged:
        """Return the first failure of each draft that has one, and the flags of all."""
        if not drafts:
            return Judged({}, {})
        texts, records = text_frame(drafts), record_frame(drafts)
        failures: dict[int, Failure] = {}
        found = [
            *_failures(self._texts, texts, "part"),
            *_failures(self._records, records, None),
            *_failures(self._attributes, attribute_frame(drafts), "name"),
        ]
        for row, failure in found:
            if row not in failures or RANK[failure.reason] < RANK[failures[row].reason]:
                failures[row] = failure
        return Judged(failures, _flags(texts, records, drafts, self._noted))


def _failures(
    schema: pa.DataFrameSchema, frame: pl.DataFrame, detail_column: str | None
) -> Iterator[tuple[int, Failure]]:
    """Validate a frame; yield which rows fail which rule."""
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
    texts: pl.DataFrame,
    records: pl.DataFrame,
    drafts: Sequence[Draft],
    noted: Sequence[PrivateCode],
) -> dict[int, set[str]]:
    """Return the flags of the drafts that have some."""
    flags: dict[int, set[str]] = {}
    matches = texts.select(
        "row",
        *(
            (is_where(where) & pl.col("content").str.contains(pattern)).alias(code)
            for code, where, pattern in FLAGGED_PATTERNS
        ),
        *(holds(code).alias(code) for code in noted),
    )
    ties = records.select("row", score_tie=pl.col("score_chosen") == pl.col("score_rejected"))
    for frame in (matches, ties):
        for code in frame.columns[1:]:
            for row in frame.filter(pl.col(code))["row"].unique():
                flags.setdefault(row, set()).add(code)
    for row, draft in enumerate(drafts):
        if draft.is_prompt_implicit:
            flags.setdefault(row, set()).add("implicit_prompt")
    return flags


def in_order(flags: set[str]) -> list[str]:
    """Return flags in the order of `FLAGS`."""
    return [code for code in FLAGS if code in flags]
