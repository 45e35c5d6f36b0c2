"""The data of a stage: both splits tokenised, their order, and what to tell about them."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from alignflow.data_validation.canonical import Split
from alignflow.jobs.run_folder import RunFolder
from alignflow.training.checkpoints import model_digest
from alignflow.training.config import SURVIVAL_FIELDS, TrainerConfig, TrainingJob
from alignflow.training.data import PREFERENCES, RecordKind, load_rows
from alignflow.training.feed import BatchT, Feed
from alignflow.training.packing import DataOrder, Items
from alignflow.training.responses import mismatched_rows
from alignflow.training.rows import TokenRows
from alignflow.training.stage_rows import DatasetStageConfig, stage_rows

if TYPE_CHECKING:  # importing megatron takes seconds
    from alignflow.training.megatron.run import Run

_TOKENS = "tokens"
"""Where in the run folder the rows are kept."""


@dataclass(frozen=True)
class StageData:
    """Training and held-out rows of a job."""

    config: TrainerConfig
    model: Path
    train: TokenRows
    held_out: TokenRows

    @property
    def splits(self) -> dict[Split, TokenRows]:
        """Both splits by name."""
        return {"train": self.train, "held_out": self.held_out}

    @property
    def order(self) -> DataOrder:
        """The items of each step."""
        return DataOrder.of(self.config, len(self.train))

    @property
    def validation_batches(self) -> list[Items]:
        """The held-out items that are measured, so many at a time as a step takes."""
        items = np.arange(len(self.held_out))[: self.config.max_validation_rows]
        size = self.config.global_batch_size
        return [items[start : start + size] for start in range(0, len(items), size)]

    @property
    def identity(self) -> str:
        """SHA-256 of the initial model, of the tokens of both splits and of the config.

        The layout belongs to it, for it decides the rounding.
        """
        parts = (
            model_digest(self.model),
            self.train.summary.digest,
            self.held_out.summary.digest,
            self.config.model_dump_json(exclude=set(SURVIVAL_FIELDS)),
        )
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def feed(
        self,
        run: "Run",
        rows: TokenRows,
        make_batch: Callable[[TokenRows, Items], BatchT],
    ) -> Feed[BatchT]:
        """Return this rank's share of a split's batches."""
        return Feed.of_run(run, rows, make_batch, max_tokens=self.config.microbatch_tokens)

    def details(self, tokens_processed: int) -> dict[str, Any]:
        """Return what the report says about the data, and how many models were in memory.

        A pair is one record and two rows. `num_rows`, `num_tokens`, `num_held_out_rows` and
        `num_truncated` count rows and their tokens, once however many epochs there are;
        `num_refused` and `refused_rows` count records.

        Args:
            tokens_processed: Tokens that went through training, each epoch's anew.
        """
        splits = (self.train.summary, self.held_out.summary)
        details = {
            "num_models": 1,
            "num_rows": self.train.num_rows,
            "num_tokens": len(self.train.tokens),
            "tokens_processed": tokens_processed,
            "num_held_out_rows": self.held_out.num_rows,
            "num_truncated": sum(split.num_truncated for split in splits),
            "num_refused": sum(sum(split.reasons.values()) for split in splits),
            "refused_rows": [row for split in splits for row in split.refused],
        }
        if len(self.train) < self.config.global_batch_size:
            details["note"] = (
                f"The training set holds {len(self.train)} items, fewer than one global batch of "
                f"{self.config.global_batch_size}: every step takes all of them."
            )
        return details


def load_data(
    job: TrainingJob, folder: RunFolder, kind: RecordKind, *, max_length: int
) -> StageData:
    """Tokenise both splits of the job's dataset, or map what an earlier attempt tokenised.

    Args:
        job: Model, dataset and stage.
        folder: Keeps the tokens.
        kind: What the records are.
        max_length: Most tokens of a row.

    Raises:
        ConfigError: Rows may be longer than the model's positions.
        DataError: The dataset or the tokenizer can't be used, or no training row is left.
    """
    train, held_out = (
        load_rows(
            job.dataset,
            split,
            kind,
            model=job.model,
            max_length=max_length,
            cache=folder.path / _TOKENS,
            is_writer=_is_writer(),
        )
        for split in ("train", "held_out")
    )
    return StageData(job.stage, job.model, train, held_out)


def load_stage_data(config: DatasetStageConfig, job: TrainingJob, folder: RunFolder) -> StageData:
    """Return the rows of a stage that are determined by its config and its dataset.

    Raises:
        ConfigError: As `load_data`.
        DataError: As `load_data`.
    """
    kind, max_length = stage_rows(config, job.dataset)
    return load_data(job, folder, kind, max_length=max_length)


def load_held_out_pairs(job: TrainingJob, folder: RunFolder) -> TokenRows:
    """Tokenise the held-out pairs of a job that trains on their prompts, or map what lies there."""
    return load_rows(
        job.dataset,
        "held_out",
        PREFERENCES,
        model=job.model,
        max_length=job.stage.max_length,
        cache=folder.path / _TOKENS / "pairs",
        is_writer=_is_writer(),
    )


def load_mismatched(data: StageData, folder: RunFolder) -> dict[str, TokenRows]:
    """Return `train_mismatched` and `held_out_mismatched`, see `mismatched_rows`.

    Raises:
        DataError: All prompts of a split are the same.
    """
    return {
        f"{split}_mismatched": mismatched_rows(
            rows,
            folder.path / _TOKENS / f"{split}_mismatched",
            max_length=data.config.max_length,
            is_writer=_is_writer(),
        )
        for split, rows in (("train", data.train), ("held_out", data.held_out))
    }


def _is_writer() -> bool:
    return os.environ.get("RANK", "0") == "0"
