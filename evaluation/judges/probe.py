"""A linear judge on the hidden states of a language model, kept as safetensors and JSON.

Where a statement has references, how much it overlaps with the true and with the false ones counts
too.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold

from alignflow.errors import DataError
from alignflow.evaluation.judges.calibration import Bools, Floats, sigmoid
from alignflow.evaluation.judges.statement import Statement
from alignflow.evaluation.judges.states import States
from alignflow.evaluation.overlap import MEASURES, truth_by_overlap

PROBE_FILE = "probe.safetensors"
STATES_FOLDER = "language_model"

_OVERLAPS = tuple(f"{name}_{kind}" for name in MEASURES for kind in ("max", "diff"))
"""What is known of a statement beside its references, as `truth_by_overlap` names it."""

_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)
"""Inverse strengths of the L2 penalty that are tried, on features of variance 1."""
_INNER_FOLDS = 3


@dataclass(frozen=True)
class Probe:
    """A logistic regression on features."""

    weights_F: Floats
    bias: float

    @classmethod
    def fit(
        cls, features_NF: Floats, labels_N: Bools, sources: Sequence[str], *, seed: int
    ) -> Self:
        """Fit it, its penalty the best by cross-validation within the given examples.

        Args:
            features_NF: Of any scale.
            labels_N: What is to be told.
            sources: What each example comes from; none is on two sides of a split.
            seed: Of the split.
        """
        mean_F, scale_F = features_NF.mean(0), features_NF.std(0)
        scale_F[scale_F == 0] = 1.0
        scaled_NF = (features_NF - mean_F) / scale_F
        penalty = _best_penalty(scaled_NF, labels_N, sources, seed=seed)
        model = _regression(penalty).fit(scaled_NF, labels_N)
        weights_F = model.coef_[0].astype(np.float64) / scale_F
        return cls(weights_F, float(model.intercept_[0] - mean_F @ weights_F))

    def log_odds(self, features_NF: Floats) -> Floats:
        """Return the log-odds of each example, [N]."""
        log_odds_N: Floats = features_NF @ self.weights_F + self.bias
        return log_odds_N


@dataclass(frozen=True)
class ProbeJudge:
    """A fitted judge with the language model that it reads."""

    states: States
    probe: Probe

    @property
    def num_features(self) -> int:
        """What it reads of a statement."""
        return len(self.probe.weights_F)

    def log_odds(self, statements: Sequence[Statement]) -> Floats:
        """Return the log-odds of each statement being toxic, true or informative, [N]."""
        if not statements:
            return np.empty(0)
        return self.probe.log_odds(features(self.states, statements))

    def probabilities(self, statements: Sequence[Statement]) -> Floats:
        """Return the probability of each statement being toxic, true or informative, [N]."""
        return sigmoid(self.log_odds(statements))

    def calibrated(self, slope: float, offset: float) -> Self:
        """Return the judge whose log-odds are `slope * log_odds + offset`."""
        probe = Probe(slope * self.probe.weights_F, slope * self.probe.bias + offset)
        return type(self)(self.states, probe)

    def save(self, folder: Path) -> None:
        """Write the weights; the language model is in the folder already."""
        arrays = {"weights": self.probe.weights_F, "bias": np.array([self.probe.bias])}
        save_file(arrays, folder / PROBE_FILE)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read the folder of a judge.

        Raises:
            DataError: The files are missing, or don't fit together.
        """
        try:
            arrays = load_file(folder / PROBE_FILE)
            probe = Probe(arrays["weights"], float(arrays["bias"][0]))
        except (OSError, LookupError, SafetensorError) as error:
            raise DataError(f"{folder}: holds no judge that can be loaded ({error}).") from None
        states = States.load(folder / STATES_FOLDER)
        num_features = states.size + len(_OVERLAPS)
        if probe.weights_F.shape != (num_features,):
            raise DataError(
                f"{folder}: {len(probe.weights_F)} weights for {num_features} features."
            )
        return cls(states, probe)


def features(
    states: States, statements: Sequence[Statement], on_pass: Callable[[], None] = lambda: None
) -> Floats:
    """Return what a probe reads of statements: their states, then overlaps, [N, F].

    `on_pass` is that of `States.vectors`.
    """
    overlaps_NO = np.array([_overlaps(statement) for statement in statements])
    return np.hstack([states.vectors(statements, on_pass), overlaps_NO])


def _overlaps(statement: Statement) -> list[float]:
    """Return how much a statement overlaps with its references; zeros if it has none."""
    true, false = statement.true_references, statement.false_references
    if not (true and false):
        return [0.0] * len(_OVERLAPS)
    scores = truth_by_overlap(statement.text, true, false)
    return [scores[name] for name in _OVERLAPS]


def _best_penalty(
    scaled_NF: Floats, labels_N: Bools, sources: Sequence[str], *, seed: int
) -> float:
    """Return the penalty of the largest AUC on held-out examples; of equal ones the strictest."""
    folds = StratifiedGroupKFold(_INNER_FOLDS, shuffle=True, random_state=seed)
    splits = list(folds.split(scaled_NF, labels_N, sources))

    def auc(penalty: float) -> float:
        values = []
        for learnt, held_out in splits:
            if len(set(labels_N[learnt])) < 2 or len(set(labels_N[held_out])) < 2:
                continue
            model = _regression(penalty).fit(scaled_NF[learnt], labels_N[learnt])
            values.append(
                roc_auc_score(labels_N[held_out], model.decision_function(scaled_NF[held_out]))
            )
        return float(np.mean(values)) if values else 0.0

    return max(_PENALTIES, key=auc)


def _regression(penalty: float) -> LogisticRegression:
    return LogisticRegression(C=penalty, max_iter=2000)
