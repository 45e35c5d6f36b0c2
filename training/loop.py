"""The loop that every stage shares: fetch, step, log, guard, validate, checkpoint.

A run that is killed and resumed goes through the same steps as an undisturbed one: the data order
follows from the step, and the rest of the state is what Megatron saves and a `Progress`.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic

from torch import Tensor

from alignflow.data_validation.canonical import Split
from alignflow.errors import ConfigError, DataError
from alignflow.jobs.run_folder import RunFolder
from alignflow.training.checkpoints import Checkpoints, model_digest, recorded_digests
from alignflow.training.config import StageConfig
from alignflow.training.errors import DivergedError, RewardHackingError
from alignflow.training.feed import BatchT, Feed
from alignflow.training.forward import mean_loss
from alignflow.training.losses import SummedLoss
from alignflow.training.packing import DataOrder, Items
from alignflow.training.shared_hashing import find_damage
from alignflow.training.steps import Metrics, Progress, StepLoop
from alignflow.training.watch import Validation, best_step, num_without_gain

if TYPE_CHECKING:  # importing megatron takes seconds
    from alignflow.training.megatron.run import Run

_OF_THE_OPTIMIZER = ("grad_norm", "learning_rate")


@dataclass(frozen=True)
class Objective(Generic[BatchT]):
    """What a stage minimises."""

    compute_loss: Callable[[Tensor, BatchT], SummedLoss]
    """Gets the model's output and the batch it came from."""
    check_first_step: Callable[[Metrics], None] = lambda metrics: None
    """Gets the metrics of the very first step; raises where they show that all is wrong."""
    check_validations: Callable[[Sequence[Validation]], None] = lambda validations: None
    """Gets every validation so far, after each; raises where they show that training does harm."""
    before_batch: Callable[[Split, Items], None] = lambda split, items: None
    """Gets the items of a global batch just before they are computed, on every rank alike: for
    what the loss needs to know of the whole batch under the present model."""


class Trainer(StepLoop[Progress], Generic[BatchT]):
    """Trains a run over a data order."""

    def __init__(
        self,
        run: "Run",
        folder: RunFolder,
        config: StageConfig,
        objective: Objective[BatchT],
        *,
        order: DataOrder,
        train: Feed[BatchT],
        held_out: Feed[BatchT],
        validation_batches: Sequence[Items],
    ) -> None:
        checkpoints = Checkpoints(
            folder.checkpoints,
            model_digest=model_digest(run.model_dir),
            data_digest=f"{train.rows.summary.digest} {held_out.rows.summary.digest}",
            config=config.identity(),
            keep=config.keep_checkpoints,
        )
        super().__init__(run, folder, config, checkpoints, order, Progress())
        self._config = config
        self._objective = objective
        self._train = train
        self._held_out = held_out
        self._validation_batches = validation_batches

    def train(self) -> Metrics:
        """Train from the newest checkpoint, or from the start, to the last step.

        Returns:
            Each metric's last value by `stage/quantity`, and as `…_first` that of the first step;
            `held_out_…` were measured before and after training. Of a run that restored its best
            step, the values that were the last then, and the number of that step.

        Raises:
            ConfigError: The newest checkpoint was made under another config, or there are no
                held-out rows to tell the best step by.
            DataError: The newest checkpoint was made on other data, or from another model.
            DivergedError: A loss or gradient norm was past its bound, NaN or infinite.
            JobStoppedError: The job was told to stop; a checkpoint holds what was done.
            RewardHackingError: The objective's rewards grew while held-out accuracy fell.
        """
        self._check_held_out()
        try:
            self._run_to_the_end()
        except DivergedError as error:
            # The model of this very step may be the one that went wrong.
            good = self._last_good(self._progress.step - 1)
            raise DivergedError(f"{error} {good}") from None
        except RewardHackingError as error:
            since = error.since_step
            raise RewardHackingError(
                f"{error} {self._last_good(since)}", since_step=since
            ) from None
        if self._config.restore_best:
            self._restore_best()
        return self._results()

    @property
    def _has_held_out(self) -> bool:
        return bool(self._validation_batches)

    def _is_over(self) -> bool:
        patience = self._config.early_stop_patience
        is_stale = patience is not None and num_without_gain(self._progress.validations) >= patience
        return is_stale or super()._is_over()

    def _best_step(self) -> int | None:
        return best_step(self._progress.validations) if self._config.restore_best else None

    def _step(self) -> Metrics:
        """Apply one update, log and judge it."""
        step, compute_loss = self._progress.step, self._objective.compute_loss
        items = self._order.items(step)
        began = time.perf_counter()
        self._objective.before_batch("train", items)
        try:
            metrics = self._run.train_step(self._train.batches(items), compute_loss)
        except DivergedError as error:
            raise DivergedError(f"Step {step + 1}: {error}") from None
        num_tokens = self._train.num_tokens(items)
        self._progress.num_tokens += num_tokens
        tokens_per_s = num_tokens / (time.perf_counter() - began)
        self._log("train", step + 1, metrics, tokens_per_s=tokens_per_s)
        if step == 0:
            self._objective.check_first_step(metrics)
            self._progress.first |= {
                name: value for name, value in metrics.items() if name not in _OF_THE_OPTIMIZER
            }
        return metrics

    def _validate(self) -> None:
        """Measure the held-out rows, note, log and judge it."""
        progress = self._progress
        metrics = mean_loss(
            self._run,
            self._held_out,
            self._validation_batches,
            self._objective.compute_loss,
            before_batch=partial(self._objective.before_batch, "held_out"),
        )
        held_out = {f"held_out_{name}": value for name, value in metrics.items()}
        self._log("validate", progress.step, held_out)
        # Written so that NaN fails too.
        if progress.step and not metrics["loss"] <= self._config.max_loss:
            raise DivergedError(
                f"Step {progress.step}: The held-out loss is {metrics['loss']:.4g}, past max_loss "
                f"{self._config.max_loss:g}; lower learning_rate."
            )
        self._note_validation(metrics, held_out)
        self._objective.check_validations(progress.validations)

    def _check_held_out(self) -> None:
        for name in ("early_stop_patience", "restore_best"):
            if getattr(self._config, name) and not self._validation_batches:
                raise ConfigError(
                    f"{name} goes by the held-out loss, but the dataset has no held-out rows; "
                    "raise held_out_share, or leave it out."
                )

    def _write(self, path: Path, progress: dict[str, Any]) -> None:
        self._run.save_checkpoint(path, progress)

    def _read(self, path: Path) -> Progress:
        return Progress.of(self._run.load_checkpoint(path))

    def _restore_best(self) -> None:
        """Go back to the model of the lowest held-out loss, if that isn't the last one."""
        best, num_tokens = best_step(self._progress.validations), self._progress.num_tokens
        if best is not None and best != self._progress.step:
            path = self._checkpoints.path(best)
            if damage := find_damage(path, recorded_digests(path)):
                raise DataError(f"The best checkpoint, {path}, is damaged: {damage}.")
            saved = self._read(path)
            self._progress = replace(saved, num_tokens=num_tokens)
        self._progress.last["best_step"] = self._progress.step

    def _last_good(self, step: int) -> str:
        """Return a sentence about the newest checkpoint that was made after at most so many."""
        path = self._checkpoints.newest(until_step=step)
        return (
            f"The last good checkpoint is {path}." if path else "No checkpoint is from before it."
        )
