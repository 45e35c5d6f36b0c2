"""Training a judge: cross-validation for its card, then all examples for itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold

from alignflow.errors import DataError
from alignflow.evaluation.judges.calibration import Bools, Floats, fit_platt, sigmoid
from alignflow.evaluation.judges.card import JudgeCard
from alignflow.evaluation.judges.config import DataFile, JudgeTraining
from alignflow.evaluation.judges.examples import (
    Example,
    ExampleSet,
    check_learnable,
    labelled_examples,
    read_hatecheck,
    read_references,
)
from alignflow.evaluation.judges.measure import measure, measure_transfer
from alignflow.evaluation.judges.ngrams import NgramJudge
from alignflow.evaluation.judges.statement import Statement

Rows = NDArray[np.int64]


class Linear(Protocol):
    """A fitted judge whose log-odds can be scaled."""

    @property
    def num_features(self) -> int:
        """What it reads of a statement."""
        ...

    def calibrated(self, slope: float, offset: float) -> Self:
        """Return the judge whose log-odds are `slope * log_odds + offset`."""
        ...

    def probabilities(self, statements: Sequence[Statement]) -> Floats:
        """Return the probability of each statement being toxic, true or informative, [N]."""
        ...


JudgeT = TypeVar("JudgeT", bound=Linear)


class Learner(Protocol[JudgeT]):
    """Fits judges on some examples and asks them about others, each by its number."""

    def fit(self, rows: Rows) -> JudgeT:
        """Fit a judge on some of the examples; its log-odds are not calibrated."""
        ...

    def log_odds(self, judge: JudgeT, rows: Rows) -> Floats:
        """Return the judge's log-odds of some of the examples."""
        ...


@dataclass(frozen=True)
class NgramLearner:
    """Fits judges over n-grams."""

    examples: Sequence[Example]

    def fit(self, rows: Rows) -> NgramJudge:
        """Fit a judge, with a vocabulary of these examples."""
        labels = [self.examples[row].label for row in rows]
        return NgramJudge.fit(self._statements(rows), np.array(labels))

    def log_odds(self, judge: NgramJudge, rows: Rows) -> Floats:
        """Return the judge's log-odds of some of the examples."""
        return judge.log_odds(self._statements(rows))

    def _statements(self, rows: Rows) -> list[Statement]:
        return [self.examples[row].statement for row in rows]


def train_judge(config: JudgeTraining, files: Sequence[DataFile], folder: Path) -> JudgeCard:
    """Fit a judge over n-grams and write it with its card.

    Args:
        config: How to fit it; the files are on this machine.
        files: What the card says of them.
        folder: Where to write.

    Raises:
        DataError: A file can't be used; the message names file, item and field.
    """
    found = read_examples(config)
    check_learnable(found, Path(config.data), num_folds=config.num_folds)
    judge, card = fit_judge(config, files, found, NgramLearner(found.examples))
    judge.save(folder)
    card.save(folder)
    return card


def fit_judge(
    config: JudgeTraining, files: Sequence[DataFile], found: ExampleSet, learner: Learner[JudgeT]
) -> tuple[JudgeT, JudgeCard]:
    """Return the judge that is fitted on all examples, and its card by cross-validation.

    Equal examples and settings give equal judges.
    """
    labels_N = np.array([example.label for example in found.examples])
    fold_N = split(found.examples, num_folds=config.num_folds, seed=config.seed)
    log_odds_N = np.empty(len(labels_N))
    for fold in np.unique(fold_N):
        of_others = learner.fit(np.flatnonzero(fold_N != fold))
        held_out = np.flatnonzero(fold_N == fold)
        log_odds_N[held_out] = learner.log_odds(of_others, held_out)
    judge = learner.fit(np.arange(len(labels_N)))
    judge = judge.calibrated(*fit_platt(log_odds_N, labels_N))
    transfer = None
    if config.transfer is not None:
        cases = read_hatecheck(Path(config.transfer))
        probabilities_N = judge.probabilities([case.statement for case in cases])
        transfer = measure_transfer(probabilities_N, cases, threshold=config.threshold)
    card = JudgeCard(
        task=config.task,
        threshold=config.threshold,
        num_examples=len(found.examples),
        num_positive=int(labels_N.sum()),
        num_repeated=found.num_repeated,
        num_contradictory=found.num_contradictory,
        num_references=found.num_references,
        num_features=judge.num_features,
        num_folds=config.num_folds,
        seed=config.seed,
        measured=measure(
            _calibrated(log_odds_N, labels_N, fold_N), found.examples, threshold=config.threshold
        ),
        auc_by_fold=[
            float(roc_auc_score(labels_N[fold_N == fold], log_odds_N[fold_N == fold]))
            for fold in np.unique(fold_N)
        ],
        transfer=transfer,
        licence=config.licence,
        files=list(files),
    )
    return judge, card


def read_examples(config: JudgeTraining) -> ExampleSet:
    """Read the labelled texts of a judge.

    Raises:
        DataError: Names file, item and field, or the setting that doesn't fit the task.
    """
    if config.task == "toxicity" and config.references is not None:
        raise DataError("a toxicity judge compares with no references; leave them out.")
    if config.task != "toxicity" and config.transfer is not None:
        raise DataError(f"HateCheck says nothing of a judge of {config.task}; leave it out.")
    references = read_references(Path(config.references)) if config.references else None
    return labelled_examples(config.task, Path(config.data), references)


def split(examples: Sequence[Example], *, num_folds: int, seed: int) -> np.ndarray:
    """Return the fold of each example, [N]; a source is in one fold, labels are spread evenly."""
    labels = [example.label for example in examples]
    sources = [example.source for example in examples]
    folds = StratifiedGroupKFold(num_folds, shuffle=True, random_state=seed)
    fold_N = np.empty(len(examples), dtype=np.int64)
    for fold, (_, held_out) in enumerate(folds.split(labels, labels, sources)):
        fold_N[held_out] = fold
    return fold_N


def _calibrated(log_odds_N: Floats, labels_N: Bools, fold_N: np.ndarray) -> Floats:
    """Return probabilities; the scaling of a fold is fitted on the other ones."""
    probabilities_N = np.empty_like(log_odds_N)
    for fold in np.unique(fold_N):
        is_held_out_N = fold_N == fold
        slope, offset = fit_platt(log_odds_N[~is_held_out_N], labels_N[~is_held_out_N])
        probabilities_N[is_held_out_N] = sigmoid(slope * log_odds_N[is_held_out_N] + offset)
    return probabilities_N
