"""`python -m alignflow.training.audit RUN_FOLDER`: what each stage would make of its rows.

It also counts held-out prompts that are trained on, which takes all sets together.
The rows are made by the code that makes them for training, with the same tokenizer and template.
"""

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from alignflow.data_validation.canonical import num_rows, read_tables
from alignflow.data_validation.config import AttributeName
from alignflow.data_validation.leaks import count_leaks
from alignflow.errors import DataError
from alignflow.jobs.run_folder import RunFolder, write_atomically
from alignflow.jobs.spec import JobResult, JobSpec
from alignflow.jobs.worker import raise_if_stop_requested, read_config, run_job
from alignflow.training.config import SteerLM2Config
from alignflow.training.token_audit import (
    AUDIT_FILE,
    AuditedStage,
    StageTokens,
    TokenAudit,
    TokenAuditJob,
)

if TYPE_CHECKING:  # importing torch takes seconds, which a bad config needn't wait for
    from alignflow.training.chat import ChatTokenizer
    from alignflow.training.data import TokenizedRecord
    from alignflow.training.stage_rows import StageRows
    from alignflow.training.steering import Steering

_BATCH_RECORDS = 512
_MAX_STRIDE_READ = 16
"""Bounds what is read at once of a set of which few records are taken."""
_PERCENTILES = (50, 90, 95, 99)


def main(folder: RunFolder, spec: JobSpec) -> JobResult:
    """Run the job.

    Raises:
        ConfigError: The config is no TokenAuditJob.
        DataError: Tokenizer, chat template or a dataset can't be used.
    """
    job = read_config(folder, spec, TokenAuditJob)
    from alignflow.training.chat import ChatTokenizer

    chat = ChatTokenizer.load(job.model)
    audited = []
    for number, stage in enumerate(job.stages, start=1):
        audited.append(audit_stage(stage, job.datasets[stage.dataset], chat, job.max_records))
        line = {"phase": "audit", "step": number, "num_steps": len(job.stages)}
        folder.append_metrics({**line, "time": time.time()})
    audit = TokenAudit(stages=audited, leaks=count_leaks(job.datasets))
    folder.output.mkdir(parents=True, exist_ok=True)
    write_atomically(folder.output / AUDIT_FILE, audit.model_dump_json(indent=1) + "\n")
    return JobResult(
        metrics={
            f"token_audit/{tokens.stage}_over_limit_share": tokens.share("max_over_limit_share")
            for tokens in audited
        }
    )


def audit_stage(
    stage: AuditedStage, dataset: Path, chat: "ChatTokenizer", max_records: int
) -> StageTokens:
    """Count what a stage would make of the training split of a dataset.

    Args:
        stage: The stage.
        dataset: Dataset artifact.
        chat: Tokenizer and template.
        max_records: Most records to look at, evenly spread over the split.

    Raises:
        DataError: The dataset can't be used.
    """
    from alignflow.training.data import check_columns, tokenize_records

    config = stage.config
    kind, limit = _rows_of(stage, dataset)
    num_records = num_rows(dataset, "train")
    counts = _Counts(limit, chat.end_of_turn_token)
    for records, columns in _spread(dataset, stride=max(-(-num_records // max_records), 1)):
        raise_if_stop_requested()
        check_columns(dataset, kind, columns)
        for record in tokenize_records(kind, chat, records, limit):
            counts.add(record)
    return StageTokens(
        stage=config.stage,
        dataset=stage.dataset,
        limit=limit,
        num_records=num_records,
        num_audited=counts.num_records,
        num_rows=len(counts.lengths),
        num_tokens=sum(counts.lengths),
        percentiles=_percentiles(counts.lengths),
        num_over_limit=sum(length > limit for length in counts.lengths),
        num_tokens_over=sum(max(length - limit, 0) for length in counts.lengths),
        num_response_cut=counts.num_response_cut,
        num_missing_end=counts.num_missing_end,
        refused=dict(counts.refused.most_common()),
    )


def _rows_of(stage: AuditedStage, dataset: Path) -> "StageRows":
    """Return which rows a stage would make; SteerLM 2.0 of prompts, whose answers it samples."""
    from alignflow.training.data import steered_prompts
    from alignflow.training.stage_rows import StageRows, stage_rows

    if not isinstance(stage.config, SteerLM2Config):
        return stage_rows(stage.config, dataset)
    asked_for = _steering(dataset, stage.wanted or {})
    return StageRows(steered_prompts(asked_for.wanted), stage.config.max_prompt_tokens)


def _steering(dataset: Path, wanted: Mapping[AttributeName, int]) -> "Steering":
    """Return what SteerLM will be asked for; rows that its training leaves out count too."""
    from alignflow.training.data import RATED, check_columns
    from alignflow.training.steering import Steering

    labels = []
    for records, columns in _spread(dataset, stride=1):
        check_columns(dataset, RATED, columns)
        labels.append(np.array([label for record in records for label in RATED.labels(record)]))
    if not labels:
        raise DataError(f"{dataset}: no row is left to train on.")
    return Steering.of_labels(np.concatenate(labels), wanted)


def _spread(dataset: Path, *, stride: int) -> Iterator[tuple[list[Mapping[str, Any]], list[str]]]:
    """Yield every so many records of the training split in batches, with their columns."""
    skipped = 0  # records since the last one that was taken, which are still to be left out
    batch_rows = _BATCH_RECORDS * min(stride, _MAX_STRIDE_READ)
    for batch in read_tables(dataset, "train", batch_rows=batch_rows):
        taken = batch.take(list(range(skipped, batch.num_rows, stride)))
        skipped = (skipped - batch.num_rows) % stride
        yield taken.to_pylist(), batch.schema.names


class _Counts:
    """What accumulates over the records of a stage."""

    def __init__(self, limit: int, end_of_turn: int) -> None:
        self.num_records = 0
        self.lengths: list[int] = []
        self.num_response_cut = 0
        self.num_missing_end = 0
        self.refused: Counter[str] = Counter()
        self._limit = limit
        self._end_of_turn = end_of_turn

    def add(self, record: "TokenizedRecord") -> None:
        """Take a record into account."""
        self.num_records += 1
        self.lengths += [len(row.tokens_T) for row in record.uncut]
        if record.refusal is not None:
            self.refused[record.refusal] += 1
            return
        for row, whole in zip(record.rows, record.uncut, strict=True):
            self.num_response_cut += bool(whole.is_learnt_T[self._limit :].any())
            learnt_T = row.tokens_T[row.is_learnt_T]
            self.num_missing_end += bool(len(learnt_T) and learnt_T[-1] != self._end_of_turn)


def _percentiles(lengths: list[int]) -> dict[str, int]:
    if not lengths:
        return {}
    values = np.percentile(lengths, _PERCENTILES, method="inverted_cdf")
    named = {f"p{share}": int(value) for share, value in zip(_PERCENTILES, values, strict=True)}
    return {**named, "max": max(lengths)}


if __name__ == "__main__":
    run_job(main)
