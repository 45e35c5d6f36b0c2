"""A judge that has learnt one word."""

import json

import pytest

from alignflow.evaluation.judges.config import JudgeTraining
from alignflow.evaluation.judges.judge import Judge
from alignflow.evaluation.judges.train import train_judge

PLACES = ["river garden house", "warm cold red", "stone bread water", "tall short light"]


@pytest.fixture(scope="session")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Judge:
    """It holds for toxic what is called bad, and not what is called fine."""
    folder = tmp_path_factory.mktemp("judge")
    rows = [
        {
            "text": f"{place} {word} {number}",
            "label": label,
            "toxicity_score": 1.0,
            "target_groups": [],
        }
        for word, label in (("bad", "hate"), ("fine", "neutral"))
        for place in PLACES
        for number in range(5)
    ]
    data = folder / "data.json"
    data.write_text(json.dumps(rows))
    made = folder / "made"
    made.mkdir()
    train_judge(JudgeTraining(task="toxicity", data=str(data)), [], made)
    return Judge.load(made)
