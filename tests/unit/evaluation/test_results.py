"""The files of an evaluation hold what JSON can hold."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from alignflow.evaluation.results import Results, write_jsonl
from alignflow.evaluation.suites.base import SuiteResult


def test_scores_are_written_under_their_suite(tmp_path: Path) -> None:
    results = Results(tmp_path)
    toxicity = SuiteResult(
        scores={"accuracy": 0.5},
        resamples={"accuracy": np.array([0.4, 0.6])},
        items=[{"item": 1, "text": "é"}],
        groups={"accuracy": {"women": 1.0, "asian": 0.0}},
    )
    results.add("toxicity", toxicity, num_items=2)
    results.distrust("toxicity", "The judge is weak.")
    results.write({"toxicity": 1})
    assert json.loads((tmp_path / "scores.json").read_text()) == {
        "scores": {"toxicity/accuracy": 0.5},
        "stderr": {"toxicity/accuracy": pytest.approx(0.1414, abs=1e-4)},
        "groups": {"toxicity/accuracy": {"women": 1.0, "asian": 0.0}},
        "num_items": {"toxicity": 2},
        "num_truncated": {"toxicity": 1},
        "undefined": [],
        "weak_judges": {"toxicity": "The judge is weak."},
    }
    assert json.loads((tmp_path / "resamples.json").read_text()) == {
        "toxicity/accuracy": [0.4, 0.6]
    }
    assert (tmp_path / "items" / "toxicity.jsonl").read_text() == '{"item": 1, "text": "é"}\n'


def test_score_that_is_no_number_is_left_out_and_named(tmp_path: Path) -> None:
    results = Results(tmp_path)
    scores = {"mc1": math.nan, "mc2": 0.5}
    resamples = {"mc1": np.array([math.nan, 0.5]), "mc2": np.array([math.inf, 0.5])}
    with np.errstate(invalid="ignore"):
        results.add("truth", SuiteResult(scores, resamples, []), num_items=1)
        results.write({})
    content = json.loads((tmp_path / "scores.json").read_text())
    assert content["scores"] == {"truth/mc2": 0.5}
    assert content["stderr"] == {}
    assert content["undefined"] == ["truth/mc1"]


def test_two_results_of_one_name_add_up(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.add("reward_model", SuiteResult({"accuracy": 0.5}, {}, [{"item": 1}]), num_items=4)
    results.add("reward_model", SuiteResult({"margin": 1.5}, {}, []), num_items=2)
    assert results.scores == {"reward_model/accuracy": 0.5, "reward_model/margin": 1.5}
    assert results.num_items == {"reward_model": 4}


def test_numbers_that_json_lacks_become_null(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"a": math.nan, "b": {"c": (math.inf, 1.0)}}])
    assert json.loads((tmp_path / "a.jsonl").read_text()) == {"a": None, "b": {"c": [None, 1.0]}}
