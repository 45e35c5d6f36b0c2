"""`python -m alignflow.training.annotate RUN_FOLDER`: an attribute model rates answers.

The output is a dataset of kind `steerlm`. Every answer of a demonstration becomes a row of its own,
which ends with it; a row stays in the split of its record. The ratings are rounded and kept within
0 to 4, as a label has them. What is done is on disk: a job that is started again goes on after it.
"""

import hashlib
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignflow.config import Config
from alignflow.data_validation.canonical import SCHEMAS, Split, num_rows, read_tables
from alignflow.jobs.run_folder import RunFolder, write_atomically
from alignflow.jobs.spec import JobResult, JobSpec
from alignflow.jobs.worker import raise_if_stop_requested, read_config, run_job
from alignflow.training.config import AnnotationConfig

if TYPE_CHECKING:  # importing torch and megatron takes seconds, which a bad config needn't wait for
    from alignflow.training.chat import ChatTokenizer
    from alignflow.training.megatron.judges import AttributeModel

SPLITS: tuple[Split, ...] = ("train", "held_out")

_RECORDS_PER_SHARD = 512
_STATE_FILE = "annotated.json"

Record = Mapping[str, Any]


class AnnotationJob(Config):
    """Config of the job, which is one process."""

    annotation: AnnotationConfig
    model: Path
    """Folder of the attribute model."""
    demonstrations: Path
    """Dataset of kind `sft`, every answer of which is rated."""
    rated: Path | None = None
    """Dataset of kind `steerlm`, whose last answers people rated; the output holds it too."""


@dataclass
class _Shard:
    """What became of the records of one shard."""

    num_rows: int = 0
    num_truncated: int = 0
    refused: list[dict[str, str]] = field(default_factory=list)
    """`id` and `reason` of rows that the chat template can't hold, or whose answer was cut away."""
    ratings: dict[str, list[int]] = field(default_factory=dict)
    """How many rows have each rating of 0 to 4, by attribute."""


def main(folder: RunFolder, spec: JobSpec) -> JobResult:
    """Run the job.

    Raises:
        ConfigError: The config is no AnnotationJob, or asks for more than the model's positions.
        DataError: Model or dataset can't be used.
    """
    job = read_config(folder, spec, AnnotationJob)
    from alignflow.training.chat import ChatTokenizer
    from alignflow.training.megatron.architecture import check_positions
    from alignflow.training.megatron.judges import AttributeModel

    config = job.annotation
    check_positions(job.model, config.max_length, "annotation.max_length")
    chat = ChatTokenizer.load(job.model)
    model = AttributeModel.load(job.model, precision=config.precision)
    done = _Done(folder, _identity(job))
    num_records = sum(num_rows(dataset, split) for dataset in _datasets(job) for split in SPLITS)
    records_done = 0
    for split in SPLITS:
        (folder.output / split).mkdir(parents=True, exist_ok=True)
        for number, (records, size) in enumerate(_shards(job, split)):
            if not done.has(split, number):
                rows, shard = _rate(model, chat, records, config)
                done.add(split, number, rows, shard)
            records_done += size
            line = {"phase": "annotate", "step": records_done, "num_steps": num_records}
            folder.append_metrics({**line, "time": time.time()})
    return _finish(job, folder, done)


def _datasets(job: AnnotationJob) -> list[Path]:
    return [job.demonstrations, *([job.rated] if job.rated else [])]


def _shards(job: AnnotationJob, split: Split) -> Iterator[tuple[list[Record], int]]:
    """Yield what makes each shard of a split: conversations to rate, and of how many records."""
    from alignflow.training.data import DEMONSTRATIONS, RATED, check_columns

    for dataset in _datasets(job):
        kind = RATED if dataset == job.rated else DEMONSTRATIONS
        for batch in read_tables(dataset, split, batch_rows=_RECORDS_PER_SHARD):
            check_columns(dataset, kind, batch.schema.names)
            records = batch.to_pylist()
            if kind is RATED:
                yield records, len(records)
            else:
                yield [answer for record in records for answer in _answers(record)], len(records)


def _answers(record: Record) -> Iterator[Record]:
    """Yield the conversation up to each of its answers."""
    ends = [
        end for end, turn in enumerate(record["messages"], start=1) if turn["role"] == "assistant"
    ]
    for number, end in enumerate(ends, start=1):
        name = record["id"] if len(ends) == 1 else f"{record['id']}-answer-{number}"
        yield {**record, "id": name, "messages": record["messages"][:end], "attributes": {}}


def _rate(
    model: "AttributeModel",
    chat: "ChatTokenizer",
    records: Sequence[Record],
    config: AnnotationConfig,
) -> tuple[list[Record], _Shard]:
    """Return the records with a rating of every attribute of the model."""
    from alignflow.training.data import RATED, tokenize_records

    shard = _Shard()
    kept, tokens = [], []
    for tokenized in tokenize_records(RATED, chat, records, config.max_length):
        if tokenized.refusal is not None:
            shard.refused.append({"id": tokenized.record["id"], "reason": tokenized.refusal})
            continue
        kept.append(tokenized.record)
        tokens.append(tokenized.rows[0].tokens_T.tolist())
        shard.num_truncated += sum(tokenized.is_cut)
    predicted = model.rate(
        tokens,
        max_tokens=config.microbatch_tokens,
        progress=lambda _, num_tokens: raise_if_stop_requested(),
    )
    rows: list[Record] = []
    for record, values in zip(kept, predicted, strict=True):
        ratings = dict(zip(model.scale.names, map(as_rating, values), strict=True))
        if config.keep_ratings:
            known = record["attributes"].items()
            ratings |= {name: rating for name, rating in known if rating is not None}
        rows.append({**record, "attributes": ratings})
        for name, rating in ratings.items():
            shard.ratings.setdefault(name, [0] * 5)[rating] += 1
    shard.num_rows = len(rows)
    return rows, shard


def as_rating(value: float) -> int:
    """Return a predicted value as the nearest rating of 0 to 4."""
    return round(min(max(value, 0.0), 4.0))


class _Done:
    """The shards that are written, and what became of their records."""

    def __init__(self, folder: RunFolder, identity: str) -> None:
        """Take up what an earlier attempt at the same job left."""
        self._output = folder.output
        self._path = folder.path / _STATE_FILE
        self._identity = identity
        self.shards: dict[str, _Shard] = {}
        if self._path.is_file():
            state = json.loads(self._path.read_text(encoding="utf-8"))
            if state["identity"] == identity:
                self.shards = {name: _Shard(**shard) for name, shard in state["shards"].items()}
        if not self.shards:
            for split in SPLITS:  # shards of another job would count as this one's
                shutil.rmtree(self._output / split, ignore_errors=True)

    def has(self, split: Split, number: int) -> bool:
        """Whether a shard is written."""
        return self._name(split, number) in self.shards

    def add(self, split: Split, number: int, rows: Sequence[Record], shard: _Shard) -> None:
        """Write a shard, and then that it is done."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        name = self._name(split, number)
        partial = self._output.parent / "shard.partial"
        table = pa.Table.from_pylist([dict(row) for row in rows], schema=SCHEMAS["steerlm"])
        pq.write_table(table, partial, compression="zstd")
        os.replace(partial, self._output / name)
        self.shards[name] = shard
        shards = {name: asdict(shard) for name, shard in self.shards.items()}
        write_atomically(
            self._path, json.dumps({"identity": self._identity, "shards": shards}) + "\n"
        )

    def of(self, split: Split) -> list[_Shard]:
        """Return the shards of a split."""
        return [shard for name, shard in self.shards.items() if name.startswith(f"{split}/")]

    @staticmethod
    def _name(split: Split, number: int) -> str:
        return f"{split}/part-{number:05d}.parquet"


def _finish(job: AnnotationJob, folder: RunFolder, done: _Done) -> JobResult:
    """Write the card, which makes the folder a dataset, and return what was rated how."""
    counts = {split: sum(shard.num_rows for shard in done.of(split)) for split in SPLITS}
    shards = done.shards.values()
    refused = [row for shard in shards for row in shard.refused]
    num_accepted = sum(counts.values())
    cards = [_card(dataset) for dataset in _datasets(job)]
    card = {
        **cards[0],
        "kind": "steerlm",
        "sources": [source for card in cards for source in card.get("sources", [])],
        "counts": {
            "read": num_accepted + len(refused),
            "accepted": num_accepted,
            "refused": len(refused),
            "skipped": 0,
            "train": counts["train"],
            "held_out": counts["held_out"],
        },
        "reasons": dict(Counter(row["reason"] for row in refused).most_common()),
        "flags": {},
        "examples": [],
        "expectations": [],
    }
    write_atomically(folder.output / "card.json", json.dumps(card, indent=2) + "\n")
    ratings = _ratings(done.of("train"))
    return JobResult(
        metrics={
            f"annotate/mean_{name}": sum(rating * n for rating, n in enumerate(numbers))
            / sum(numbers)
            for name, numbers in ratings.items()
        },
        details={
            "name": "annotated",
            "num_train": counts["train"],
            "num_held_out": counts["held_out"],
            "num_truncated": sum(shard.num_truncated for shard in shards),
            "refused_rows": refused,
            "ratings": ratings,
        },
    )


def _ratings(shards: Sequence[_Shard]) -> dict[str, list[int]]:
    """Return how many rows have each rating of 0 to 4, by attribute."""
    ratings: dict[str, list[int]] = {}
    for shard in shards:
        for name, numbers in shard.ratings.items():
            so_far = ratings.get(name, [0] * len(numbers))
            ratings[name] = [a + b for a, b in zip(so_far, numbers, strict=True)]
    return ratings


def _card(dataset: Path) -> dict[str, Any]:
    card: dict[str, Any] = json.loads((dataset / "card.json").read_text(encoding="utf-8"))
    return card


def _identity(job: AnnotationJob) -> str:
    """Return the SHA-256 of all that determines the output."""
    from alignflow.training.checkpoints import model_digest
    from alignflow.training.data import RATED, rows_digest

    parts = [job.annotation.model_dump_json(), model_digest(job.model), str(_RECORDS_PER_SHARD)]
    for dataset in _datasets(job):
        for split in SPLITS:
            parts.append(rows_digest(dataset, split, RATED, job.model, job.annotation.max_length))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


if __name__ == "__main__":
    run_job(main)
