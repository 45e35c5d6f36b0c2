"""The canonical records: their Arrow schemas, and how training and evaluation read them.

Imports nothing but pyarrow and the configs, so that a job's container needs nothing else.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from alignflow.data_validation.config import AttributeName
from alignflow.errors import DataError

Split = Literal["train", "held_out"]

ATTRIBUTES: tuple[AttributeName, ...] = get_args(AttributeName)
"""Attributes of a SteerLM row, integers from 0 to 4; a row has some of them."""

MAX_ATTRIBUTE = 4

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
_ORIGIN = [("source", pa.string()), ("line", pa.int64())]

SCHEMAS: dict[str, pa.Schema] = {
    "sft": pa.schema([("id", pa.string()), ("messages", MESSAGES), *_ORIGIN]),
    "preference": pa.schema(
        [
            ("id", pa.string()),
            ("prompt", MESSAGES),
            ("chosen", pa.string()),
            ("rejected", pa.string()),
            ("score_chosen", pa.float64()),
            ("score_rejected", pa.float64()),
            *_ORIGIN,
        ]
    ),
    "unpaired": pa.schema(
        [
            ("id", pa.string()),
            ("prompt", MESSAGES),
            ("response", pa.string()),
            ("label", pa.bool_()),
            *_ORIGIN,
        ]
    ),
    "steerlm": pa.schema(
        [
            ("id", pa.string()),
            ("messages", MESSAGES),
            ("attributes", pa.struct([(name, pa.int8()) for name in ATTRIBUTES])),
            *_ORIGIN,
        ]
    ),
}
"""Arrow schema of the shards of each kind."""


def shards(folder: Path, split: Split) -> list[Path]:
    """Return the Parquet shards of a split, in order; an empty split has none."""
    return sorted((folder / split).glob("part-*.parquet"))


def num_rows(folder: Path, split: Split) -> int:
    """Return how many rows a split has, read from the footers alone."""
    return sum(_metadata(path).num_rows for path in shards(folder, split))


def column_names(folder: Path) -> frozenset[str]:
    """Return the columns of a dataset's rows, which tell its kind; none where it has no rows.

    Raises:
        DataError: A shard can't be read.
    """
    paths = [*shards(folder, "train"), *shards(folder, "held_out")]
    return frozenset(_metadata(paths[0]).schema.to_arrow_schema().names if paths else ())


def read_tables(folder: Path, split: Split, *, batch_rows: int = 1024) -> Iterator[pa.RecordBatch]:
    """Yield a split in file order, in batches of at most `batch_rows` rows.

    Raises:
        DataError: The folder is no dataset, or a shard can't be read.
    """
    if not (folder / "card.json").is_file():
        raise DataError(f"{folder}: not a dataset, for it has no card.json; ingest one first.")
    for path in shards(folder, split):
        try:
            with pq.ParquetFile(path) as file:
                yield from file.iter_batches(batch_size=batch_rows)
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                f"{path}: can't be read as Parquet ({error}); make the set anew."
            ) from None


def read_split(folder: Path, split: Split) -> Iterator[dict[str, Any]]:
    """Yield the rows of a split as dicts with the columns of `SCHEMAS`, in file order.

    Raises:
        DataError: The folder is no dataset, or a shard can't be read.
    """
    for batch in read_tables(folder, split):
        yield from batch.to_pylist()


def _metadata(path: Path) -> pq.FileMetaData:
    try:
        return pq.read_metadata(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: can't be read as Parquet ({error}); make the set anew.") from None
