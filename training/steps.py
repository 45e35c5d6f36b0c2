"""What the loops of all stages share: steps with validations and checkpoints between them.

A run that is killed and resumed goes through the same steps as an undisturbed one.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar

from alignflow.jobs.run_folder import RunFolder
from alignflow.jobs.worker import JobStoppedError
from alignflow.training.checkpoints import Checkpoints, recorded_digests
from alignflow.training.collectives import wait_for_all
from alignflow.training.config import StageConfig
from alignflow.training.forward import stop_if_asked
from alignflow.training.packing import DataOrder
from alignflow.training.shared_hashing import find_damage, hash_together
from alignflow.training.watch import Validation

if TYPE_CHECKING:  # importing megatron takes seconds
    from alignflow.training.megatron.run import Run

Metrics = dict[str, float]


@dataclass
class Progress:
    """How far a run is; saved with a checkpoint."""

    step: int = 0
    """Steps that were taken."""
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


ProgressT = TypeVar("ProgressT", bound=Progress)


class StepLoop(ABC, Generic[ProgressT]):
    """Goes from the newest checkpoint, or from the start, to the last step.

    Args:
        run: The model that is trained; its main rank writes.
        folder: Hears of the metrics.
        config: Of the stage.
        checkpoints: Where they are kept.
        order: The items of each step.
        progress: Of a run that begins.
    """

    step_name: ClassVar[str] = "step"
    """What a person calls a step."""

    def __init__(
        self,
        run: "Run",
        folder: RunFolder,
        config: StageConfig,
        checkpoints: Checkpoints,
        order: DataOrder,
        progress: ProgressT,
    ) -> None:
        self._run = run
        self._folder = folder
        self._stage = config
        self._checkpoints = checkpoints
        self._order = order
        self._progress = progress
        self._saved_position = progress.position

    @property
    def tokens_processed(self) -> int:
        """Tokens that the applied updates saw, those of earlier attempts and epochs included."""
        return self._progress.num_tokens

    @property
    @abstractmethod
    def _has_held_out(self) -> bool:
        """Whether there is anything to validate on."""

    @abstractmethod
    def _step(self) -> Metrics:
        """Learn once, log and judge it; returns what the step's metrics are."""

    @abstractmethod
    def _validate(self) -> None:
        """Measure what is held out, note, log and judge it."""

    @abstractmethod
    def _best_step(self) -> int | None:
        """Return the step whose checkpoint is kept as the best; None where none is."""

    @abstractmethod
    def _write(self, path: Path, progress: dict[str, Any]) -> None:
        """Write models and progress into a checkpoint; called by all ranks."""

    @abstractmethod
    def _read(self, path: Path) -> ProgressT:
        """Read what `_write` wrote; returns the progress."""

    def _run_to_the_end(self) -> None:
        """Take all steps that are left.

        Raises:
            JobStoppedError: The job was told to stop; a checkpoint holds what was done.
        """
        path = self._newest_sound()
        if path is not None:
            self._progress = self._read(path)
            self._saved_position = self._progress.position
        try:
            self._run_steps()
        except JobStoppedError:
            # It is heard between two steps, or before the updates of one: the weights are whole.
            if self._is_unsaved():
                self._save()
            done = f"after {self.step_name} {self._progress.step} of {self._order.num_steps}"
            raise JobStoppedError(f"The job was told to stop and did, {done}.") from None

    def _newest_sound(self) -> Path | None:
        """Return the newest checkpoint whose files are as they were written; none other counts."""
        while (path := self._checkpoints.newest()) is not None:
            damage = find_damage(path, recorded_digests(path))
            if damage is None:
                return path
            if self._run.is_main:
                print(f"{path} is damaged: {damage}. The one before it is taken.")
                self._checkpoints.discard(path)
            wait_for_all()
        return None

    def _results(self) -> Metrics:
        """Return each metric's last value by `stage/quantity`, and as `…_first` its first one."""
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

    def _is_over(self) -> bool:
        return self._progress.step >= self._order.num_steps

    def _is_validation_due(self) -> bool:
        step, every = self._progress.step, self._stage.validate_every_steps
        is_due = step in (0, self._order.num_steps) or (every is not None and step % every == 0)
        return is_due and self._has_held_out and not self._progress.is_validated

    def _is_checkpoint_due(self) -> bool:
        step = self._progress.step
        is_due = self._best_step() == step or step % self._stage.checkpoint_every_steps == 0
        return is_due and self._is_unsaved()

    def _is_unsaved(self) -> bool:
        """Whether a step or a validation came after the newest checkpoint."""
        return self._progress.step > 0 and self._saved_position != self._progress.position

    def _save(self) -> None:
        path = self._checkpoints.path(self._progress.step)
        if self._run.is_main:
            self._checkpoints.begin(path)
        wait_for_all()
        self._write(path, asdict(self._progress))
        wait_for_all()
        digests = hash_together(path)
        if self._run.is_main:
            self._checkpoints.finish(path, digests, best_step=self._best_step())
        self._saved_position = self._progress.position

    def _log(self, phase: str, step: int, metrics: Metrics, **extra: float) -> None:
        if self._run.is_main:
            head = {"step": step, "num_steps": self._order.num_steps, "phase": phase}
            self._folder.append_metrics(
                {**head, "time": time.time(), **extra, **self._named(metrics)}
            )

    def _note_validation(self, found: Metrics, held_out: Metrics) -> None:
        """Keep what was measured, and by its names as held out what a result shows of it."""
        progress = self._progress
        progress.validations.append(Validation(progress.step, found))
        if progress.step == 0:
            progress.first |= held_out
        else:
            progress.last |= held_out

    def _named(self, metrics: Mapping[str, float]) -> Metrics:
        return {f"{self._stage.stage}/{name}": value for name, value in metrics.items()}
