"""Accepted rows on their way to disk: staged in one file, then split into shards."""

from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from alignflow.closing import Closing
from alignflow.data_validation.canonical import SCHEMAS
from alignflow.data_validation.config import DataKind
from alignflow.data_validation.drafts import ASSISTANT, Draft, Turn
from alignflow.data_validation.splitting import GroupLinks, held_out_groups

ROWS_PER_SHARD = 50_000
_BATCH_ROWS = 4096
_SAID = ("messages", "prompt", "chosen", "rejected", "response")
"""Columns of a row that hold what is said."""


class StagedRows(Closing):
    """Accepted rows in one file, with the group of each in memory; a context manager.

    Attributes:
        links: Groups that have to stay on one side of the split.
    """

    def __init__(self, path: Path, kind: DataKind) -> None:
        self._path = path
        self._schema = SCHEMAS[kind]
        self._writer = pq.ParquetWriter(path, self._schema, compression="zstd")
        self._groups = array("Q")
        self._dropped: NDArray[np.bool_] | None = None
        self.links = GroupLinks()

    def close(self) -> None:
        """Close what is open."""
        self._writer.close()

    def add(self, records: Sequence[dict[str, Any]], groups: Sequence[int]) -> None:
        """Append records of the canonical schema and the groups they belong to."""
        if records:
            self._writer.write_table(pa.Table.from_pylist(list(records), schema=self._schema))
            self._groups.extend(groups)

    def texts(self) -> Iterator[pl.Series]:
        """Yield all that is said in each row as one text, in batches; no row can be added then."""
        for _, batch in self._read():
            frame = pl.from_arrow(batch)
            assert isinstance(frame, pl.DataFrame)
            yield frame.select(said=pl.concat_str(_said(self._schema), separator="\n"))["said"]

    def keep_together(self, earlier_R: NDArray[np.int64]) -> None:
        """Link each row to the earlier one that it repeats; -1 stands for none."""
        for row in np.flatnonzero(earlier_R >= 0):
            self.links.join(self._groups[row], self._groups[earlier_R[row]])

    def drop(self, is_dropped_R: NDArray[np.bool_]) -> Iterator[dict[str, Any]]:
        """Leave rows out of the split; yield them."""
        self._dropped = is_dropped_R
        for at, batch in self._read():
            yield from batch.filter(pa.array(is_dropped_R[at : at + batch.num_rows])).to_pylist()

    def split(self, output: Path, share: float, max_rows: int | None) -> dict[str, int]:
        """Write `train/` and `held_out/`; return how many rows each has."""
        roots_R = self.links.roots(np.array(self._groups, dtype=np.uint64))
        is_kept_R = np.ones(len(roots_R), dtype=bool) if self._dropped is None else ~self._dropped
        held_out = held_out_groups(roots_R[is_kept_R], share, max_rows)
        is_held_R = np.isin(roots_R, np.array(sorted(held_out), dtype=np.uint64))
        with (
            _ShardWriter(output / "train", self._schema) as train,
            _ShardWriter(output / "held_out", self._schema) as held,
        ):
            for at, batch in self._read():
                rows = slice(at, at + batch.num_rows)
                held.write(batch.filter(pa.array(is_held_R[rows] & is_kept_R[rows])))
                train.write(batch.filter(pa.array(~is_held_R[rows] & is_kept_R[rows])))
        return {"train": train.num_rows, "held_out": held.num_rows}

    def _read(self) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Yield the rows in batches, each with the number of its first row."""
        self._writer.close()
        at = 0
        # Buffered, what was read stays in memory until the end of the file.
        with pq.ParquetFile(self._path, pre_buffer=False) as staged:
            for batch in staged.iter_batches(batch_size=_BATCH_ROWS):
                yield at, batch
                at += batch.num_rows


class _ShardWriter(Closing):
    """Writes batches into `part-00000.parquet`, `part-00001.parquet`, …; a context manager."""

    def __init__(self, folder: Path, schema: pa.Schema) -> None:
        folder.mkdir(parents=True)
        self.num_rows = 0
        self._folder = folder
        self._schema = schema
        self._shard: pq.ParquetWriter | None = None
        self._num_shards = 0
        self._rows_in_shard = 0

    def close(self) -> None:
        """Close what is open."""
        self._close_shard()

    def write(self, batch: pa.RecordBatch) -> None:
        """Append a batch; a shard is full when it has `ROWS_PER_SHARD` rows or a few more."""
        if not batch.num_rows:
            return
        if self._shard is None:
            path = self._folder / f"part-{self._num_shards:05d}.parquet"
            self._shard = pq.ParquetWriter(path, self._schema, compression="zstd")
            self._num_shards += 1
        self._shard.write_batch(batch)
        self.num_rows += batch.num_rows
        self._rows_in_shard += batch.num_rows
        if self._rows_in_shard >= ROWS_PER_SHARD:
            self._close_shard()

    def _close_shard(self) -> None:
        if self._shard:
            self._shard.close()
        self._shard = None
        self._rows_in_shard = 0


def _said(schema: pa.Schema) -> list[pl.Expr]:
    """Return what is said in a row: the turns of its conversation or prompt, and its responses."""
    turns = pl.element().struct.field("content")
    return [
        pl.col(name).list.eval(turns).list.join("\n") if pa.types.is_list(kind) else pl.col(name)
        for name, kind in zip(schema.names, schema.types, strict=True)
        if name in _SAID
    ]


def canonical_record(draft: Draft, identity: str, source: str, line: int) -> dict[str, Any]:
    """Return an accepted draft with the columns of its kind."""
    record: dict[str, Any] = {"id": identity, "source": source, "line": line}
    if "messages" in draft.parts:
        record["messages"] = [_message(turn) for turn in draft.parts["messages"]]
        record["attributes"] = {
            name: int(value) for name, value in draft.attributes.items() if value is not None
        }
        return record
    record["prompt"] = [_message(turn) for turn in draft.parts["prompt"]]
    if "response" in draft.parts:
        return {**record, "response": draft.parts["response"][0].content, "label": draft.label}
    for part, score in zip(("chosen", "rejected"), draft.scores, strict=True):
        record[part] = draft.parts[part][0].content
        record[f"score_{part}"] = score
    return record


def as_row(record: dict[str, Any]) -> dict[str, Any]:
    """Return a canonical record as a row that can be read and checked again."""
    row = {name: value for name, value in record.items() if value is not None}
    for part in ("chosen", "rejected", "response"):
        if part in row:  # a prompt that is a list wants a response that is one
            row[part] = [{"role": ASSISTANT, "content": row[part]}]
    if "attributes" in row:
        row["attributes"] = {k: v for k, v in row["attributes"].items() if v is not None}
    return row


def _message(turn: Turn) -> dict[str, str | None]:
    return {"role": turn.role, "content": turn.content}
