"""What probabilities and labels amount to, for the card of a judge."""

from collections.abc import Mapping, Sequence

import numpy as np
from sklearn.metrics import brier_score_loss, roc_auc_score

from alignflow.evaluation.judges.calibration import Bools, Floats
from alignflow.evaluation.judges.card import (
    Confusion,
    Functionality,
    GroupQuality,
    Measured,
    ReliabilityBin,
    Transfer,
)
from alignflow.evaluation.judges.examples import Example, HateCheckCase

_NUM_BINS = 10


def measure(probabilities_N: Floats, examples: Sequence[Example], *, threshold: float) -> Measured:
    """Return how good probabilities are that were given without sight of the labels."""
    labels_N = np.array([example.label for example in examples])
    decided_N = probabilities_N >= threshold
    reliability = reliability_bins(probabilities_N, labels_N)
    by_group: dict[str, list[int]] = {}
    for row, example in enumerate(examples):
        for group in example.groups:
            by_group.setdefault(group, []).append(row)
    return Measured(
        auc=float(roc_auc_score(labels_N, probabilities_N)),
        accuracy=float(np.mean(decided_N == labels_N)),
        brier=float(brier_score_loss(labels_N, probabilities_N)),
        ece=calibration_error(reliability),
        confusion=Confusion(
            true_positives=int(np.sum(decided_N & labels_N)),
            false_positives=int(np.sum(decided_N & ~labels_N)),
            true_negatives=int(np.sum(~decided_N & ~labels_N)),
            false_negatives=int(np.sum(~decided_N & labels_N)),
        ),
        reliability=reliability,
        groups=_by_group(decided_N, labels_N, by_group),
    )


def reliability_bins(probabilities_N: Floats, labels_N: Bools) -> list[ReliabilityBin]:
    """Return the tenths of 0..1 in which probabilities lie; a bound belongs to the bin above it."""
    bin_N = np.minimum((probabilities_N * _NUM_BINS).astype(int), _NUM_BINS - 1)
    return [
        ReliabilityBin(
            mean_probability=float(probabilities_N[bin_N == number].mean()),
            share_positive=float(labels_N[bin_N == number].mean()),
            num_examples=int(np.sum(bin_N == number)),
        )
        for number in np.unique(bin_N)
    ]


def calibration_error(bins: Sequence[ReliabilityBin]) -> float:
    """Return the expected calibration error, eq. 3 of arXiv:1706.04599."""
    distances = [b.num_examples * abs(b.mean_probability - b.share_positive) for b in bins]
    return sum(distances) / sum(b.num_examples for b in bins)


def measure_transfer(
    probabilities_N: Floats, cases: Sequence[HateCheckCase], *, threshold: float
) -> Transfer:
    """Return how good probabilities are on HateCheck, by what its cases test."""
    labels_N = np.array([case.label for case in cases])
    decided_N = probabilities_N >= threshold
    is_right_N = decided_N == labels_N
    functionalities: dict[str, list[int]] = {}
    by_group: dict[str, list[int]] = {}
    for row, case in enumerate(cases):
        functionalities.setdefault(case.functionality, []).append(row)
        if case.group:
            by_group.setdefault(case.group, []).append(row)
    return Transfer(
        auc=float(roc_auc_score(labels_N, probabilities_N)),
        accuracy=float(is_right_N.mean()),
        functionalities={
            name: Functionality(
                is_hateful=bool(labels_N[rows[0]]),
                num_cases=len(rows),
                accuracy=float(is_right_N[rows].mean()),
            )
            for name, rows in functionalities.items()
        },
        groups=_by_group(decided_N, labels_N, by_group),
    )


def _by_group(
    decided_N: Bools, labels_N: Bools, by_group: Mapping[str, list[int]]
) -> dict[str, GroupQuality]:
    groups = {}
    for group in sorted(by_group):
        negatives = [row for row in by_group[group] if not labels_N[row]]
        rate = float(decided_N[negatives].mean()) if negatives else None
        groups[group] = GroupQuality(num_negative=len(negatives), false_positive_rate=rate)
    return groups
