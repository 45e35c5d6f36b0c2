"""Accepted rows on their way to disk: staged in one file, then split into shards."""

from array import array
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from alignflow.data_validation.canonical import SCHEMAS
from alignflow.data_validation.config import DataKind
from alignflow.data_validation.drafts import Draft, Turn
from alignflow.data_validation.splitting import held_out_groups

ROWS_PER_SHARD = 50_000
_BATCH_ROWS = 4096


class StagedRows:
    """Accepted rows in one file, with the group of each in memory; a context manager."""

    def __init__(self, path: Path, kind: DataKind) -> None:
        self._path = path
        self._schema = SCHEMAS[kind]
        self._writer = pq.ParquetWriter(path, self._schema, compression="zstd")
        self._groups = array("Q")

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close what is open."""
        self._writer.close()

    def add(self, records: Sequence[dict[str, Any]], groups: Sequence[int]) -> None:
        """Append records of the canonical schema and the groups they belong to."""
        if records:
            self._writer.write_table(pa.Table.from_pylist(list(records), schema=self._schema))
            self._groups.extend(groups)

    def split(self, output: Path, share: float, max_rows: int | None) -> dict[str, int]:
        """Write `train/` and `held_out/`; return how many rows each has."""
        self._writer.close()
        held_out = held_out_groups(self._groups, share, max_rows)
        with (
            _ShardWriter(output / "train", self._schema) as train,
            _ShardWriter(output / "held_out", self._schema) as held,
            pq.ParquetFile(self._path) as staged,
        ):
            at = 0
            for batch in staged.iter_batches(batch_size=_BATCH_ROWS):
                groups = self._groups[at : at + batch.num_rows]
                is_held_out = pa.array([group in held_out for group in groups])
                held.write(batch.filter(is_held_out))
                train.write(batch.filter(pc.invert(is_held_out)))
                at += batch.num_rows
        return {"train": train.num_rows, "held_out": held.num_rows}


class _ShardWriter:
    """Writes batches into `part-00000.parquet`, `part-00001.parquet`, …; a context manager."""

    def __init__(self, folder: Path, schema: pa.Schema) -> None:
        folder.mkdir(parents=True)
        self.num_rows = 0
        self._folder = folder
        self._schema = schema
        self._shard: pq.ParquetWriter | None = None
        self._num_shards = 0
        self._rows_in_shard = 0

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
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


def _message(turn: Turn) -> dict[str, str | None]:
    return {"role": turn.role, "content": turn.content}
