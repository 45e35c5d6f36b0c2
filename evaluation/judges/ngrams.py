"""A linear judge over n-grams of words and of characters, kept as plain arrays and JSON.

Texts are TF-IDF vectors; where a statement has references, its largest cosine similarity to a true
and to a false one are features too. Logistic regression turns them into a log-odds, of which Platt
scaling (Platt 1999) makes a calibrated one. No pickle is written or read.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import scipy.sparse as sp
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from alignflow.errors import DataError
from alignflow.evaluation.judges.calibration import Bools, Floats, sigmoid
from alignflow.evaluation.judges.statement import Statement

VOCABULARY_FILE = "vocabulary.json"
WEIGHTS_FILE = "weights.safetensors"

_Unit = Literal["word", "char"]
_UNITS: dict[_Unit, dict[str, Any]] = {
    # A single occurrence tells nothing of other texts.
    "word": {"analyzer": "word", "ngram_range": (1, 2), "min_df": 2},
    "char": {"analyzer": "char_wb", "ngram_range": (2, 5), "min_df": 3},
}
# Inverse strength of the L2 penalty, and the weight of similarities beside vectors of length 1: the
# best of a few values each in cross-validation; neighbouring ones differ by less than 0.01 AUC.
_PENALTY = 0.5
_SIMILARITY_SCALE = 3.0


@dataclass(frozen=True)
class NgramJudge:
    """A fitted judge."""

    vectorizers: dict[_Unit, TfidfVectorizer]
    weights_F: Floats
    """One a feature: words, characters, similarities."""
    bias: float

    @classmethod
    def fit(cls, statements: Sequence[Statement], labels_N: Bools) -> Self:
        """Fit vocabulary and weights; the log-odds are not calibrated yet."""
        texts = [
            text for s in statements for text in (s.text, *s.true_references, *s.false_references)
        ]
        try:
            vectorizers = {unit: _vectorizer(unit).fit(texts) for unit in _UNITS}
        except ValueError as error:
            raise DataError(
                f"the texts are too few or too short to learn from ({error})."
            ) from None
        model = LogisticRegression(C=_PENALTY, max_iter=2000)
        model.fit(_features(vectorizers, statements), labels_N)
        return cls(vectorizers, model.coef_[0].astype(np.float64), float(model.intercept_[0]))

    @property
    def num_features(self) -> int:
        """What it reads of a statement."""
        return len(self.weights_F)

    def log_odds(self, statements: Sequence[Statement]) -> Floats:
        """Return the log-odds of each statement being toxic, true or informative, [N]."""
        if not statements:
            return np.empty(0)
        log_odds_N: Floats = _features(self.vectorizers, statements) @ self.weights_F + self.bias
        return log_odds_N

    def probabilities(self, statements: Sequence[Statement]) -> Floats:
        """Return the probability of each statement being toxic, true or informative, [N]."""
        return sigmoid(self.log_odds(statements))

    def calibrated(self, slope: float, offset: float) -> Self:
        """Return the judge whose log-odds are `slope * log_odds + offset`."""
        return type(self)(self.vectorizers, slope * self.weights_F, slope * self.bias + offset)

    def save(self, folder: Path) -> None:
        """Write vocabulary and weights; equal judges give equal files."""
        vocabularies = {unit: _terms(v) for unit, v in self.vectorizers.items()}
        text = json.dumps(vocabularies, ensure_ascii=False, indent=0)
        (folder / VOCABULARY_FILE).write_text(f"{text}\n", encoding="utf-8")
        arrays = {f"{unit}_idf": np.asarray(v.idf_) for unit, v in self.vectorizers.items()}
        arrays |= {"weights": self.weights_F, "bias": np.array([self.bias])}
        save_file(arrays, folder / WEIGHTS_FILE)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            DataError: The files are missing, or don't fit together.
        """
        try:
            vocabularies = json.loads((folder / VOCABULARY_FILE).read_text(encoding="utf-8"))
            arrays = load_file(folder / WEIGHTS_FILE)
            vectorizers = {}
            for unit in _UNITS:
                vectorizers[unit] = _vectorizer(unit, vocabulary=vocabularies[unit])
                vectorizers[unit].idf_ = arrays[f"{unit}_idf"]
            weights_F, bias = arrays["weights"], float(arrays["bias"][0])
        except (OSError, ValueError, LookupError, TypeError, SafetensorError) as error:
            raise DataError(f"{folder}: holds no judge that can be loaded ({error}).") from None
        num_features = sum(len(vocabularies[unit]) for unit in _UNITS) + 2
        if weights_F.shape != (num_features,):
            raise DataError(f"{folder}: {len(weights_F)} weights for {num_features} features.")
        return cls(vectorizers, weights_F, bias)


def _vectorizer(unit: _Unit, **options: Any) -> TfidfVectorizer:
    return TfidfVectorizer(sublinear_tf=True, **_UNITS[unit], **options)


def _terms(vectorizer: TfidfVectorizer) -> list[str]:
    """Return the vocabulary in the order of its columns."""
    return sorted(vectorizer.vocabulary_, key=vectorizer.vocabulary_.__getitem__)


def _features(
    vectorizers: dict[_Unit, TfidfVectorizer], statements: Sequence[Statement]
) -> sp.csr_matrix:
    """Return the [N, F] features."""
    texts = [statement.text for statement in statements]
    vectors = {unit: vectorizer.transform(texts) for unit, vectorizer in vectorizers.items()}
    similarities_N2 = np.stack(
        [
            _largest_similarity(vectorizers["char"], vectors["char"], references)
            for references in (
                [statement.true_references for statement in statements],
                [statement.false_references for statement in statements],
            )
        ],
        axis=1,
    )
    return sp.hstack([*vectors.values(), _SIMILARITY_SCALE * similarities_N2]).tocsr()


def _largest_similarity(
    vectorizer: TfidfVectorizer, vectors_NF: sp.csr_matrix, references: Sequence[tuple[str, ...]]
) -> Floats:
    """Return the cosine similarity of each text to the nearest of its references; 0 without any."""
    largest_N = np.zeros(len(references))
    flat = [text for of_text in references for text in of_text]
    if not flat:
        return largest_N
    rows_R = np.repeat(np.arange(len(references)), [len(of_text) for of_text in references])
    # The vectors have length 1, so their products are the cosines.
    cosines_R = np.asarray(vectors_NF[rows_R].multiply(vectorizer.transform(flat)).sum(axis=1))
    np.maximum.at(largest_N, rows_R, cosines_R.ravel())
    return largest_N
