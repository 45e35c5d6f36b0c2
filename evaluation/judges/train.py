"""Training a judge: cross-validation for its card, then all examples for itself."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold

from alignflow.errors import DataError
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
from alignflow.evaluation.judges.ngrams import Bools, Floats, NgramJudge, fit_platt, sigmoid


def train_judge(config: JudgeTraining, files: Sequence[DataFile], folder: Path) -> JudgeCard:
    """Fit a judge and write it with its card; equal data and config give equal files.

    Args:
        config: How to fit it; the files are on this machine.
        files: What the card says of them.
        folder: Where to write.

    Raises:
        DataError: A file can't be used; the message names file, item and field.
    """
    found = read_examples(config)
    check_learnable(found, Path(config.data), num_folds=config.num_folds)
    statements = [example.statement for example in found.examples]
    labels_N = np.array([example.label for example in found.examples])
    fold_N = split(found.examples, num_folds=config.num_folds, seed=config.seed)
    log_odds_N = _held_out_log_odds(found.examples, fold_N)
    judge = NgramJudge.fit(statements, labels_N).calibrated(*fit_platt(log_odds_N, labels_N))
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
        num_features=len(judge.weights_F),
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
    judge.save(folder)
    card.save(folder)
    return card


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


def _held_out_log_odds(examples: Sequence[Example], fold_N: np.ndarray) -> Floats:
    """Return the log-odds of each example by a judge that was fitted on the other folds."""
    log_odds_N = np.empty(len(examples))
    for fold in np.unique(fold_N):
        learnt = [e for e, of in zip(examples, fold_N, strict=True) if of != fold]
        held_out = [e for e, of in zip(examples, fold_N, strict=True) if of == fold]
        judge = NgramJudge.fit([e.statement for e in learnt], np.array([e.label for e in learnt]))
        log_odds_N[fold_N == fold] = judge.log_odds([e.statement for e in held_out])
    return log_odds_N


def _calibrated(log_odds_N: Floats, labels_N: Bools, fold_N: np.ndarray) -> Floats:
    """Return probabilities; the scaling of a fold is fitted on the other ones."""
    probabilities_N = np.empty_like(log_odds_N)
    for fold in np.unique(fold_N):
        is_held_out_N = fold_N == fold
        slope, offset = fit_platt(log_odds_N[~is_held_out_N], labels_N[~is_held_out_N])
        probabilities_N[is_held_out_N] = sigmoid(slope * log_odds_N[is_held_out_N] + offset)
    return probabilities_N
