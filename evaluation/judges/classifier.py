"""A text classifier of transformers as a judge; only safetensors and JSON are read of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from alignflow.config import Config
from alignflow.errors import DataError
from alignflow.evaluation.judges.calibration import Floats
from alignflow.evaluation.judges.card import CLASSIFIER_FILE
from alignflow.evaluation.judges.statement import Statement

_BATCH = 64


class ClassifierFile(Config):
    """Content of `classifier.json`."""

    label: str
    max_length: int


@dataclass(frozen=True)
class Classifier:
    """A model that is asked for the probability of one of its labels."""

    model: Any
    tokenizer: Any
    label: int
    max_length: int

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a model folder with its `classifier.json`.

        Raises:
            DataError: It holds no classifier that can be loaded, or one without the label.
        """
        settings = ClassifierFile.model_validate_json((folder / CLASSIFIER_FILE).read_bytes())
        try:
            model = AutoModelForSequenceClassification.from_pretrained(
                folder, use_safetensors=True, trust_remote_code=False, dtype=torch.float32
            )
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).splitlines()[0][:200]
            raise DataError(
                f"{folder}: holds no classifier that can be loaded ({reason})."
            ) from None
        labels = model.config.label2id
        if settings.label not in labels:
            known = ", ".join(labels)
            raise DataError(f"{folder}: the classifier has no label {settings.label}, but {known}.")
        return cls(model.eval(), tokenizer, labels[settings.label], settings.max_length)

    @torch.inference_mode()
    def probabilities(self, statements: Sequence[Statement]) -> Floats:
        """Return the probability of the label for each statement, [N]."""
        # Texts of a like length are padded the least.
        order = sorted(range(len(statements)), key=lambda row: len(statements[row].text))
        probabilities_N = np.empty(len(statements))
        for start in range(0, len(order), _BATCH):
            rows = order[start : start + _BATCH]
            encoded = self.tokenizer(
                [statements[row].text for row in rows],
                padding=True,
                truncation=True,
                max_length=self.max_length,
                return_tensors="pt",
            )
            logits_BC = self.model(**encoded).logits.double()
            probabilities_N[rows] = logits_BC.softmax(-1)[:, self.label].numpy()
        return probabilities_N
