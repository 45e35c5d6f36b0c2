"""The loop that every stage shares: fetch, step, log, guard, validate, checkpoint.

A run that is killed and resumed goes through the same steps as an undisturbed one: the data order
follows from the step, and the rest of the state is what Megatron saves and a `Progress`.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Self

from torch import Tensor

from alignflow.data_validation.canonical import Split
from alignflow.errors import ConfigError
from alignflow.jobs.run_folder import RunFolder
from alignflow.jobs.worker import JobStoppedError
from alignflow.training.checkpoints import Checkpoints, model_digest
from alignflow.training.collectives import wait_for_all
from alignflow.training.config import StageConfig
from alignflow.training.errors import DivergedError, RewardHackingError
from alignflow.training.feed import BatchT, Feed
from alignflow.training.forward import mean_loss, stop_if_asked
from alignflow.training.losses import SummedLoss
from alignflow.training.packing import DataOrder, Items
from alignflow.training.watch import Validation, best_step, num_without_gain

if TYPE_CHECKING:  # importing megatron takes seconds
    from alignflow.training.megatron.run import Run

Metrics = dict[str, float]

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


@dataclass
class Progress:
    """How far a run is; saved with a checkpoint."""

    step: int = 0
    """Updates that were applied."""
    num_tokens: int = 0
    """Tokens of these updates, prompts included."""
    first: Metrics = field(default_factory=dict)
    """Metrics of the first step, and held-out metrics before it."""
    last: Metrics = field(default_factory=dict)
    """The newest value of each metric."""
    validations: list[Validation] = field(default_factory=list)
    """All so far, by which the best step is told, and when to stop early."""

    @classmethod
    def of(cls, saved: Mapping[str, Any]) -> Self:
        """Return the progress that `asdict` made a mapping of."""
        validations = [Validation(**validation) for validation in saved["validations"]]
        return cls(**{**saved, "validations": validations})

    @property
    def position(self) -> tuple[int, int]:
        """What a checkpoint is told from the next one by: steps and validations so far."""
        return self.step, len(self.validations)

    @property
    def is_validated(self) -> bool:
        """Whether the model as it is now was measured."""
        return bool(self.validations) and self.validations[-1].step == self.step


class Trainer(Generic[BatchT]):
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
        self._run = run
        self._folder = folder
        self._config = config
        self._objective = objective
        self._order = order
        self._train = train
        self._held_out = held_out
        self._validation_batches = validation_batches
        self._checkpoints = Checkpoints(
            folder.checkpoints,
            model_digest=model_digest(run.model_dir),
            data_digest=f"{train.rows.summary.digest} {held_out.rows.summary.digest}",
            config=config.identity(),
            keep=config.keep_checkpoints,
        )
        self._progress = Progress()
        self._saved_position = self._progress.position

    @property
    def tokens_processed(self) -> int:
        """Tokens that the applied updates saw, those of earlier attempts and epochs included."""
        return self._progress.num_tokens

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
        self._resume()
        try:
            self._run_steps()
        except JobStoppedError:
            if self._is_unsaved():
                self._save()
            done = f"after step {self._progress.step} of {self._order.num_steps}"
            raise JobStoppedError(f"The job was told to stop and did, {done}.") from None
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
        first = {f"{name}_first": value for name, value in self._progress.first.items()}
        return self._named(self._progress.last | first)

    def _run_steps(self) -> None:
        progress = self._progress
        while True:
            # Before the checkpoint of this step, which so holds what was measured after it.
            if self._is_validation_due():
                self._validate()
            if self._is_over():
                return
            if self._is_checkpoint_due():
                self._save()
            progress.last |= self._step()
            progress.step += 1
            stop_if_asked()

    def _is_validation_due(self) -> bool:
        step, every = self._progress.step, self._config.validate_every_steps
        is_due = step in (0, self._order.num_steps) or (every is not None and step % every == 0)
        return is_due and bool(self._validation_batches) and not self._progress.is_validated

    def _is_over(self) -> bool:
        progress, patience = self._progress, self._config.early_stop_patience
        is_stale = patience is not None and num_without_gain(progress.validations) >= patience
        return is_stale or progress.step >= self._order.num_steps

    def _is_checkpoint_due(self) -> bool:
        step = self._progress.step
        is_best = self._config.restore_best and best_step(self._progress.validations) == step
        is_due = is_best or step % self._config.checkpoint_every_steps == 0
        return is_due and self._is_unsaved()

    def _is_unsaved(self) -> bool:
        """Whether a step or a validation came after the newest checkpoint."""
        return self._progress.step > 0 and self._saved_position != self._progress.position

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
        progress.validations.append(Validation(progress.step, metrics))
        if progress.step == 0:
            progress.first |= held_out
        else:
            progress.last |= held_out
        self._objective.check_validations(progress.validations)

    def _log(self, phase: str, step: int, metrics: Metrics, **extra: float) -> None:
        if self._run.is_main:
            head = {"step": step, "num_steps": self._order.num_steps, "phase": phase}
            self._folder.append_metrics(
                {**head, "time": time.time(), **extra, **self._named(metrics)}
            )

    def _named(self, metrics: Mapping[str, float]) -> Metrics:
        return {f"{self._config.stage}/{name}": value for name, value in metrics.items()}

    def _check_held_out(self) -> None:
        for name in ("early_stop_patience", "restore_best"):
            if getattr(self._config, name) and not self._validation_batches:
                raise ConfigError(
                    f"{name} goes by the held-out loss, but the dataset has no held-out rows; "
                    "raise held_out_share, or leave it out."
                )

    def _resume(self) -> None:
        path = self._checkpoints.newest()
        if path is not None:
            self._progress = Progress.of(self._run.load_checkpoint(path))
            self._saved_position = self._progress.position

    def _restore_best(self) -> None:
        """Go back to the model of the lowest held-out loss, if that isn't the last one."""
        best, num_tokens = best_step(self._progress.validations), self._progress.num_tokens
        if best is not None and best != self._progress.step:
            saved = self._run.load_checkpoint(self._checkpoints.path(best))
            self._progress = replace(Progress.of(saved), num_tokens=num_tokens)
        self._progress.last["best_step"] = self._progress.step

    def _last_good(self, step: int) -> str:
        """Return a sentence about the newest checkpoint that was made after at most so many."""
        path = self._checkpoints.newest(until_step=step)
        return (
            f"The last good checkpoint is {path}." if path else "No checkpoint is from before it."
        )

    def _save(self) -> None:
        step = self._progress.step
        path = self._checkpoints.path(step)
        if self._run.is_main:
            self._checkpoints.begin(path)
        wait_for_all()
        self._run.save_checkpoint(path, asdict(self._progress))
        wait_for_all()
        if self._run.is_main:
            best = best_step(self._progress.validations) if self._config.restore_best else None
            self._checkpoints.finish(path, best_step=best)
        self._saved_position = self._progress.position
