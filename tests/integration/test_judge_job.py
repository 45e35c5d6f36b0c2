"""A classifier of transformers becomes a judge: its numbers are those of the plain model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.metrics import roc_auc_score
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from alignflow.errors import DataError
from alignflow.evaluation.judges.__main__ import main
from alignflow.evaluation.judges.judge import Judge
from alignflow.evaluation.judges.statement import Statement
from alignflow.jobs.run_folder import RunFolder
from alignflow.jobs.spec import JobResult, JobSpec

pytestmark = pytest.mark.integration

TOXICITY = Path(__file__).parents[2] / "examples/toxicity.json"


def run(path: Path, model: Path, **settings: Any) -> tuple[Path, JobResult]:
    folder = RunFolder(path / "job")
    folder.path.mkdir()
    folder.create()
    config = {
        "task": "toxicity",
        "model": str(model),
        "settings": {"labelled": str(TOXICITY), **settings},
        "file": {"role": "data", "name": TOXICITY.name, "sha256": "0" * 64},
    }
    spec = JobSpec(name="judge", module="alignflow.evaluation.judges", config=config)
    folder.begin_attempt(spec)
    return folder.output / "judge", main(folder, spec)


@torch.no_grad()
def plain(model: Path, text: str) -> float:
    """The probability of the second label, a text at a time."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    classifier = AutoModelForSequenceClassification.from_pretrained(model).eval()
    inputs = tokenizer(text, return_tensors="pt", truncation=True, max_length=128)
    return float(classifier(**inputs).logits.double().softmax(-1)[0, 1])


def test_a_classifier_gets_its_card_and_judges(tmp_path: Path, classifier: Path) -> None:
    folder, result = run(tmp_path, classifier)
    judge = Judge.load(folder)
    items = json.loads(TOXICITY.read_text())
    said = judge.judge([Statement(item["text"]) for item in items]).probabilities_N
    for number in (0, 17, 40):
        assert said[number] == pytest.approx(plain(classifier, items[number]["text"]), abs=1e-6)
    labels = [item["label"] == "hate" for item in items]
    assert judge.card.measured.auc == pytest.approx(roc_auc_score(labels, said))
    assert result.metrics["judge/auc"] == judge.card.measured.auc
    assert judge.card.num_folds is None
    assert not list(folder.glob("*.bin"))


def test_a_label_that_the_classifier_lacks_is_refused(tmp_path: Path, classifier: Path) -> None:
    with pytest.raises(DataError, match="has no label toxic, but LABEL_0, LABEL_1"):
        run(tmp_path, classifier, label="toxic")


def test_pickled_weights_are_refused(tmp_path: Path, classifier: Path) -> None:
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    for path in classifier.iterdir():
        if path.suffix != ".safetensors":
            (pickled / path.name).write_bytes(path.read_bytes())
    torch.save({}, pickled / "pytorch_model.bin")
    with pytest.raises(DataError, match="pickled weights are never loaded"):
        run(tmp_path, pickled)
