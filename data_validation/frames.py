"""Records as typed frames: one row a text, one row a record, one row an attribute.

Conversations have no fixed width, so what holds for every text is checked on a frame of texts in
which each turn is one row, and what relates the texts of a record on a frame of records.
"""

from typing import Any

import numpy as np
import polars as pl

from alignflow.data_validation.ascii_texts import Indices
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


def text_frame(records: Records, turns: Indices) -> pl.DataFrame:
    """Return some turns of all parts of all records."""
    places = [
        (part, at, len(roles), roles[0], role)
        for shape in records.shapes
        for part, roles in shape.parts
        for at, role in enumerate(roles)
    ]
    sizes = np.array([len(shape.roles) for shape in records.shapes])
    first_place = (np.cumsum(sizes) - sizes)[records.shape_of]
    record_of = records.record_of[turns]
    place_of = turns + (first_place - records.starts)[record_of]
    frame: pl.DataFrame = pl.DataFrame(places, schema=_PLACE_COLUMNS, orient="row")[place_of]
    contents = [records.contents[turn] for turn in turns.tolist()]
    return frame.with_columns(
        pl.Series("row", record_of, dtype=pl.UInt32),
        pl.Series("content", contents, dtype=pl.String),
    ).select(*TEXT_COLUMNS)


def record_frame(records: Records, rows: Indices) -> pl.DataFrame:
    """Return some records, one row each."""
    indices = rows.tolist()
    last_turns = {
        name: [None if turn < 0 else records.trimmed[turn] for turn in turns[rows].tolist()]
        for name, turns in records.last_turns.items()
    }
    scores = [records.scores[index] for index in indices]
    columns: dict[str, Any] = {
        "row": rows,
        "id": [records.ids[index] for index in indices],
        "fewest_turns": records.fewest_turns[rows],
        "num_attributes": [len(records.attributes.get(index, ())) for index in indices],
        **last_turns,
        "score_chosen": [chosen for chosen, _ in scores],
        "score_rejected": [rejected for _, rejected in scores],
        "label": [records.labels.get(index) for index in indices],
        "has_lone_surrogate": [index in records.lone_surrogates for index in indices],
    }
    return pl.DataFrame(
        [pl.Series(name, columns[name], dtype=type_) for name, type_ in RECORD_COLUMNS.items()]
    )


def attribute_frame(records: Records) -> pl.DataFrame:
    """Return every attribute of every record."""
    rows = [
        (row, name, value)
        for row, attributes in records.attributes.items()
        for name, value in attributes.items()
    ]
    return pl.DataFrame(rows, schema=ATTRIBUTE_COLUMNS, orient="row")
