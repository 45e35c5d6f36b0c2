"""Drafts as typed frames: one row a text, one row a record, one row an attribute.

Conversations have no fixed width, so what holds for every text is checked on a frame of texts in
which each turn is one row, and what relates the texts of a record on a frame of records.
"""

from collections.abc import Sequence

import polars as pl

from alignflow.data_validation.drafts import ASSISTANT, SYSTEM, USER, Draft

PARTS = ("prompt", "chosen", "rejected", "response", "messages")
ROLES = (SYSTEM, USER, ASSISTANT)

TEXT_COLUMNS = {
    "row": pl.UInt32,  # index of the draft
    "part": pl.String,  # one of PARTS
    "at": pl.Int32,  # position in its part
    "num_turns": pl.Int32,  # of its part
    "first_role": pl.String,  # of its part
    "role": pl.String,
    "content": pl.String,
}
RECORD_COLUMNS = {
    "row": pl.UInt32,
    "id": pl.String,
    "fewest_turns": pl.Int32,  # of any part
    "num_attributes": pl.Int32,
    "question": pl.String,  # last turn of the prompt
    "response": pl.String,  # last turn of chosen, response or messages
    "rejected": pl.String,
    "score_chosen": pl.Float64,
    "score_rejected": pl.Float64,
    "label": pl.Boolean,
    "has_lone_surrogate": pl.Boolean,
}
ATTRIBUTE_COLUMNS = {"row": pl.UInt32, "name": pl.String, "value": pl.Float64}


def text_frame(drafts: Sequence[Draft]) -> pl.DataFrame:
    """Return every turn of every part of every draft."""
    rows = [
        (row, part, at, len(turns), turns[0].role, turn.role, turn.content)
        for row, draft in enumerate(drafts)
        for part, turns in draft.parts.items()
        for at, turn in enumerate(turns)
    ]
    return pl.DataFrame(rows, schema=TEXT_COLUMNS, orient="row")


def record_frame(drafts: Sequence[Draft]) -> pl.DataFrame:
    """Return one row a draft."""
    return pl.DataFrame(
        [_record(row, draft) for row, draft in enumerate(drafts)],
        schema=RECORD_COLUMNS,
        orient="row",
    )


def _record(row: int, draft: Draft) -> tuple[object, ...]:
    prompt, messages = draft.prompt, draft.messages
    rejected = draft.parts.get("rejected")
    return (
        row,
        draft.id,
        min(map(len, draft.parts.values())),
        len(draft.attributes),
        prompt[-1].content if prompt else None,
        messages[-1].content if messages else None,
        rejected[-1].content if rejected else None,
        *draft.scores,
        draft.label,
        draft.has_lone_surrogate,
    )


def attribute_frame(drafts: Sequence[Draft]) -> pl.DataFrame:
    """Return every attribute of every draft."""
    rows = [
        (row, name, value)
        for row, draft in enumerate(drafts)
        for name, value in draft.attributes.items()
    ]
    return pl.DataFrame(rows, schema=ATTRIBUTE_COLUMNS, orient="row")
