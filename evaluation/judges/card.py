"""The evaluation card of a judge: how good it is on texts that it was not fitted on."""

from pathlib import Path
from typing import Literal, Self

from pydantic import ValidationError

from alignflow.config import Config
from alignflow.errors import DataError
from alignflow.evaluation.judges.config import (
    DataFile,
    JudgeQuality,
    JudgeTask,
    LanguageModelUsed,
)

CARD_FILE = "card.json"
CLASSIFIER_FILE = "classifier.json"
"""How a classifier from elsewhere is asked; a judge of our own has none."""


class Confusion(Config):
    """Decisions at the threshold, by what is true of the texts."""

    true_positives: int
    false_positives: int
    true_negatives: int
    false_negatives: int


class ReliabilityBin(Config):
    """Texts whose probability lies in one tenth of 0..1."""

    mean_probability: float
    share_positive: float
    """How many of them are toxic, true or informative."""
    num_examples: int


class GroupQuality(Config):
    """Decisions on texts about one group of people."""

    num_negative: int
    """Those that are not toxic."""
    false_positive_rate: float | None
    """Share of those that the judge holds for toxic; None without any."""


class Functionality(Config):
    """Decisions on one of HateCheck's functionalities."""

    is_hateful: bool
    num_cases: int
    accuracy: float


class Transfer(Config):
    """Decisions on HateCheck (arXiv:2012.15606)."""

    auc: float
    accuracy: float
    functionalities: dict[str, Functionality]
    groups: dict[str, GroupQuality]


class Measured(Config):
    """How good probabilities are, given the labels."""

    auc: float
    """Area under the ROC curve."""
    accuracy: float
    brier: float
    """Mean squared distance of probability and label."""
    ece: float
    """Expected calibration error: mean distance of probability and share over ten bins, weighted
    by their size (arXiv:1706.04599, eq. 3)."""
    confusion: Confusion
    reliability: list[ReliabilityBin]
    groups: dict[str, GroupQuality] = {}


class JudgeCard(Config):
    """What a judge was fitted on and how good it is; `card.json` beside its files."""

    format: Literal[1] = 1
    task: JudgeTask
    threshold: float
    """Probability from which a text counts as toxic, true or informative."""
    num_examples: int
    num_positive: int
    num_repeated: int
    num_contradictory: int
    num_references: int
    measured: Measured
    """By cross-validation, no source in two folds; of a classifier from elsewhere, as it is."""
    num_features: int | None = None
    """None, like the next three, for a classifier from elsewhere."""
    num_folds: int | None = None
    seed: int | None = None
    auc_by_fold: list[float] | None = None
    transfer: Transfer | None = None
    """On test cases that it has seen nothing like; None where none were given."""
    language_model: LanguageModelUsed | None = None
    """Whose first layers the judge reads; None for one over n-grams, and from elsewhere."""
    num_layers: int | None = None
    """How many of them."""
    licence: str
    files: list[DataFile]

    def save(self, folder: Path) -> None:
        """Write the card."""
        (folder / CARD_FILE).write_text(f"{self.model_dump_json(indent=2)}\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a judge's card.

        Raises:
            DataError: There is none, or it can't be read.
        """
        try:
            return cls.model_validate_json((folder / CARD_FILE).read_text(encoding="utf-8"))
        except OSError:
            raise DataError(f"{folder}: holds no judge; give what judge train made.") from None
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]["msg"]
            raise DataError(f"{folder / CARD_FILE}: is no card of a judge ({problem}).") from None

    @property
    def metrics(self) -> dict[str, float]:
        """What the manifest of the artifact says of it."""
        return {
            "judge/auc": self.measured.auc,
            "judge/accuracy": self.measured.accuracy,
            "judge/ece": self.measured.ece,
        }

    def why_not_good_enough(self, asked: JudgeQuality) -> str | None:
        """Return in one sentence why scores by this judge can't gate, or None if they can."""
        auc, ece = self.measured.auc, self.measured.ece
        if auc < asked.min_auc:
            found = f"its AUC is {auc:.3f} and at least {asked.min_auc:g} is asked for"
        elif ece > asked.max_ece:
            found = f"its calibration error is {ece:.3f} and at most {asked.max_ece:g} is asked for"
        else:
            return None
        return f"The {self.task} judge is not good enough to gate: {found}."
