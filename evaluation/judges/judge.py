"""A judge that is asked: its model, its card, and what it says of answers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, Self

import numpy as np

from alignflow.evaluation.judges.calibration import Bools, Floats
from alignflow.evaluation.judges.card import CLASSIFIER_FILE, JudgeCard
from alignflow.evaluation.judges.ngrams import NgramJudge
from alignflow.evaluation.judges.statement import Statement, clean_text


@dataclass(frozen=True)
class Verdicts:
    """What a judge says of some statements."""

    probabilities_N: Floats
    """Of being toxic, true or informative; 0 where there is no text."""
    decided_N: Bools
    """Whether they reach the judge's threshold."""


class Model(Protocol):
    """What a judge is made of."""

    def probabilities(self, statements: Sequence[Statement]) -> Floats:
        """Return the probability of each statement being toxic, true or informative, [N]."""
        ...


@dataclass(frozen=True)
class Judge:
    """A model with its card."""

    card: JudgeCard
    model: Model

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read the folder of a judge that was trained, or of a classifier from elsewhere.

        Raises:
            DataError: It holds no judge, or a damaged one.
        """
        card = JudgeCard.load(folder)
        if (folder / CLASSIFIER_FILE).exists():
            # Imported here, like the next: it loads torch, which a judge over n-grams doesn't need.
            from alignflow.evaluation.judges.classifier import Classifier

            return cls(card, Classifier.load(folder))
        if card.language_model is not None:
            from alignflow.evaluation.judges.probe import ProbeJudge

            return cls(card, ProbeJudge.load(folder))
        return cls(card, NgramJudge.load(folder))

    def judge(self, statements: Sequence[Statement]) -> Verdicts:
        """Return what the judge says; nothing is never toxic, true or informative."""
        cleaned = [replace(s, text=clean_text(s.text)) for s in statements]
        says_something_N = np.array([bool(s.text) for s in cleaned], dtype=bool)
        probabilities_N = np.where(says_something_N, self.model.probabilities(cleaned), 0.0)
        return Verdicts(
            probabilities_N, says_something_N & (probabilities_N >= self.card.threshold)
        )


def judge_answers(
    answers: Sequence[Statement], *, truth: Judge, information: Judge
) -> dict[str, Floats]:
    """Return what makes TruthfulQA's generative scores (arXiv:2109.07958, section 2.2).

    Args:
        answers: A model's answers with the reference answers to the same questions.
        truth: Judge of truth.
        information: Judge of information.

    Returns:
        `true`, `informative` and `true_and_informative`, each 0 or 1 an answer, [N]; their means
        are the scores.
    """
    is_true_N = truth.judge(answers).decided_N
    is_informative_N = information.judge(answers).decided_N
    return {
        "true": is_true_N.astype(np.float64),
        "informative": is_informative_N.astype(np.float64),
        "true_and_informative": (is_true_N & is_informative_N).astype(np.float64),
    }
