"""Records as typed frames: one row a text, one row a record, one row an attribute.

Conversations have no fixed width, so what holds for every text is checked on a frame of texts in
which each turn is one row, and what relates the texts of a record on a frame of records.
"""

import numpy as np
import polars as pl

from alignflow.data_validation.drafts import ASSISTANT, SYSTEM, USER
from alignflow.data_validation.records import Records

PARTS = ("prompt", "chosen", "rejected", "response", "messages")
ROLES = (SYSTEM, USER, ASSISTANT)

_PLACE_COLUMNS = {
    "part": pl.String,  # one of PARTS
    "at": pl.Int32,  # position in its part
    "num_turns": pl.Int32,  # of its part
    "first_role": pl.String,  # of its part
    "role": pl.String,
}
TEXT_COLUMNS = {
    "row": pl.UInt32,  # index of the record
    **_PLACE_COLUMNS,
    "content": pl.String,
}
RECORD_COLUMNS = {
    "row": pl.UInt32,
    "id": pl.String,
    "fewest_turns": pl.Int32,  # of any part
    "num_attributes": pl.Int32,
    "question": pl.String,  # last turn of the prompt, trimmed
    "response": pl.String,  # last turn of chosen, response or messages, trimmed
    "rejected": pl.String,  # trimmed
    "score_chosen": pl.Float64,
    "score_rejected": pl.Float64,
    "label": pl.Boolean,
    "has_lone_surrogate": pl.Boolean,
}
ATTRIBUTE_COLUMNS = {"row": pl.UInt32, "name": pl.String, "value": pl.Float64}


def text_frame(records: Records) -> pl.DataFrame:
    """Return every turn of every part of every record."""
    places = [
        (part, at, len(roles), roles[0], role)
        for shape in records.shapes
        for part, roles in shape.parts
        for at, role in enumerate(roles)
    ]
    sizes = np.array([len(shape.roles) for shape in records.shapes])
    first_place = (np.cumsum(sizes) - sizes)[records.shape_of]
    place_of = np.arange(len(records.contents)) + np.repeat(
        first_place - records.starts, records.num_turns
    )
    frame: pl.DataFrame = pl.DataFrame(places, schema=_PLACE_COLUMNS, orient="row")[place_of]
    return frame.with_columns(
        pl.Series("row", records.record_of, dtype=pl.UInt32),
        pl.Series("content", records.contents, dtype=pl.String),
    ).select(*TEXT_COLUMNS)


def record_frame(records: Records) -> pl.DataFrame:
    """Return one row a record."""
    indices = range(len(records))
    fewest = np.array([min(len(roles) for _, roles in shape.parts) for shape in records.shapes])
    columns = {
        "row": indices,
        "id": records.ids,
        "fewest_turns": fewest[records.shape_of],
        "num_attributes": [len(records.attributes.get(index, ())) for index in indices],
        "question": _last_turns(records, [shape.num_prompt_turns - 1 for shape in records.shapes]),
        "response": _last_turns(
            records,
            [shape.last_turn_of("chosen", "response", "messages") for shape in records.shapes],
        ),
        "rejected": _last_turns(
            records, [shape.last_turn_of("rejected") for shape in records.shapes]
        ),
        "score_chosen": [chosen for chosen, _ in records.scores],
        "score_rejected": [rejected for _, rejected in records.scores],
        "label": [records.labels.get(index) for index in indices],
        "has_lone_surrogate": [index in records.lone_surrogates for index in indices],
    }
    return pl.DataFrame(
        [pl.Series(name, columns[name], dtype=type_) for name, type_ in RECORD_COLUMNS.items()]
    )


def _last_turns(records: Records, at: list[int]) -> list[str | None]:
    """Return the trimmed text of one turn of each record, None where its shape says -1."""
    offsets = np.array(at)[records.shape_of]
    turns = np.where(offsets < 0, -1, records.starts + offsets)
    return [None if turn < 0 else records.trimmed[turn] for turn in turns.tolist()]


def attribute_frame(records: Records) -> pl.DataFrame:
    """Return every attribute of every record."""
    rows = [
        (row, name, value)
        for row, attributes in records.attributes.items()
        for name, value in attributes.items()
    ]
    return pl.DataFrame(rows, schema=ATTRIBUTE_COLUMNS, orient="row")
