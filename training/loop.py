"""The loop that every stage shares: fetch, step, log, guard, validate, checkpoint.

A run that is killed and resumed goes through the same steps as an undisturbed one: the data order
follows from the step, and the rest of the state is what Megatron saves.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Generic

from torch import Tensor

from alignflow.data_validation.canonical import Split
from alignflow.jobs.run_folder import RunFolder
from alignflow.jobs.worker import JobStoppedError
from alignflow.training.checkpoints import Checkpoints, model_digest
from alignflow.training.collectives import wait_for_all
from alignflow.training.config import SURVIVAL_FIELDS, StageConfig
from alignflow.training.errors import DivergedError
from alignflow.training.feed import BatchT, Feed
from alignflow.training.forward import mean_loss, stop_if_asked
from alignflow.training.losses import SummedLoss
from alignflow.training.packing import DataOrder, Items

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
            config=config.model_dump(mode="json", exclude=set(SURVIVAL_FIELDS)),
            keep=config.keep_checkpoints,
        )
        self._progress = Progress()
        self._saved_step = 0

    @property
    def tokens_processed(self) -> int:
        """Tokens that the applied updates saw, those of earlier attempts and epochs included."""
        return self._progress.num_tokens

    def train(self) -> Metrics:
        """Train from the newest checkpoint, or from the start, to the last step.

        Returns:
            Each metric's last value by `stage/quantity`, and as `…_first` that of the first step;
            `held_out_…` were measured before and after training.

        Raises:
            ConfigError: The newest checkpoint was made under another config.
            DataError: The newest checkpoint was made on other data, or from another model.
            DivergedError: A loss was past `max_loss`, or a loss or gradient NaN or infinite.
            JobStoppedError: The job was told to stop; a checkpoint holds what was done.
        """
        self._resume()
        try:
            self._run_steps()
        except JobStoppedError:
            if self._progress.step > self._saved_step:
                self._save()
            done = f"after step {self._progress.step} of {self._order.num_steps}"
            raise JobStoppedError(f"The job was told to stop and did, {done}.") from None
        first = {f"{name}_first": value for name, value in self._progress.first.items()}
        return self._named(self._progress.last | first)

    def _run_steps(self) -> None:
        progress, config = self._progress, self._config
        if progress.step == 0:
            progress.first |= self._validate()
        while progress.step < self._order.num_steps:
            progress.last |= self._step()
            progress.step += 1
            stop_if_asked()
            if progress.step == self._order.num_steps:
                break
            if progress.step % config.checkpoint_every_steps == 0:
                self._save()
            if config.validate_every_steps and progress.step % config.validate_every_steps == 0:
                progress.last |= self._validate()
        progress.last |= self._validate()

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

    def _validate(self) -> Metrics:
        """Measure the held-out rows; without any there is nothing to return."""
        means = mean_loss(
            self._run,
            self._held_out,
            self._validation_batches,
            self._objective.compute_loss,
            before_batch=partial(self._objective.before_batch, "held_out"),
        )
        metrics = {f"held_out_{name}": value for name, value in means.items()}
        if metrics:
            self._log("validate", self._progress.step, metrics)
        return metrics

    def _log(self, phase: str, step: int, metrics: Metrics, **extra: float) -> None:
        if self._run.is_main:
            head = {"step": step, "num_steps": self._order.num_steps, "phase": phase}
            self._folder.append_metrics(
                {**head, "time": time.time(), **extra, **self._named(metrics)}
            )

    def _named(self, metrics: Mapping[str, float]) -> Metrics:
        return {f"{self._config.stage}/{name}": value for name, value in metrics.items()}

    def _resume(self) -> None:
        path = self._checkpoints.newest()
        if path is not None:
            self._progress = Progress(**self._run.load_checkpoint(path))
            self._saved_step = self._progress.step

    def _save(self) -> None:
        path = self._checkpoints.path(self._progress.step)
        if self._run.is_main:
            self._checkpoints.begin(path)
        wait_for_all()
        self._run.save_checkpoint(path, asdict(self._progress))
        wait_for_all()
        if self._run.is_main:
            self._checkpoints.finish(path)
        self._saved_step = self._progress.step
