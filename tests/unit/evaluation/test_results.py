"""The files of an evaluation hold what JSON can hold."""

import json
import math
from pathlib import Path

from alignflow.evaluation.measures import Items, Measure, read_measures
from alignflow.evaluation.results import Results, write_jsonl
from alignflow.evaluation.suites.base import SuiteResult


def test_scores_are_written_under_their_suite(tmp_path: Path) -> None:
    results = Results(tmp_path, limited=["suites.toxicity.limit"])
    accuracy = Measure.mean(Items.of("abcd", sources="aabb"), [1, 1, 0, 1], is_share=True)
    toxicity = SuiteResult(
        measures={"accuracy": accuracy},
        items=[{"item": 1, "text": "é"}],
        groups={"accuracy": accuracy.by_group([["women"], ["women"], ["asian"], []])},
    )
    results.add("toxicity", toxicity, num_items=4)
    results.distrust("toxicity", "The judge is weak.")
    results.write({"toxicity": 1}, {"toxicity": 2})
    content = json.loads((tmp_path / "scores.json").read_text())
    # Two sources, of which a resample holds one twice or both: 2/4, 3/4 or 4/4.
    low, high = content["intervals"].pop("toxicity/accuracy")
    assert (low, high) == (0.5, 1.0)
    assert content == {
        "scores": {"toxicity/accuracy": 0.75},
        "intervals": {},
        "groups": {
            "toxicity/accuracy": {
                # One source by itself has no spread to go by.
                "asian": {"value": 0.0, "interval": None, "num_items": 1},
                "women": {"value": 1.0, "interval": None, "num_items": 2},
            }
        },
        "statistics": {
            "method": "BCa bootstrap over sources",
            "confidence": 0.95,
            "num_resamples": 2000,
            "seed": 1234,
        },
        "num_items": {"toxicity": 4},
        "num_sources": {"toxicity/accuracy": 2},
        "num_truncated": {"toxicity": 1},
        "num_left_out": {"toxicity": 2},
        "limited": ["suites.toxicity.limit"],
        "undefined": [],
        "weak_judges": {"toxicity": "The judge is weak."},
    }
    read = read_measures(tmp_path / "measures.json")["toxicity/accuracy"]
    assert read.items == accuracy.items
    assert (read.value, read.limits) == (0.75, (0.0, 1.0))
    assert (tmp_path / "items" / "toxicity.jsonl").read_text() == '{"item": 1, "text": "é"}\n'


def test_score_that_is_no_number_is_left_out_and_named(tmp_path: Path) -> None:
    results = Results(tmp_path)
    two = Items.of("ab")
    measures = {"mc1": Measure.mean(two, [math.nan, 1.0]), "mc2": Measure.mean(two, [0.25, 0.75])}
    results.add("truth", SuiteResult(measures, []), num_items=2)
    results.write({})
    content = json.loads((tmp_path / "scores.json").read_text())
    assert content["scores"] == {"truth/mc2": 0.5}
    assert list(content["intervals"]) == ["truth/mc2"]
    assert content["undefined"] == ["truth/mc1"]
    assert math.isnan(read_measures(tmp_path / "measures.json")["truth/mc1"].value)


def test_two_results_of_one_name_add_up(tmp_path: Path) -> None:
    results = Results(tmp_path)
    first = {"accuracy": Measure.mean(Items.of("ab"), [0.0, 1.0])}
    second = {"margin": Measure.mean(Items.of("a"), [1.5])}
    results.add("reward_model", SuiteResult(first, [{"item": 1}]), num_items=4)
    results.add("reward_model", SuiteResult(second, []), num_items=2)
    assert results.scores == {"reward_model/accuracy": 0.5, "reward_model/margin": 1.5}
    assert results.num_items == {"reward_model": 4}


def test_numbers_that_json_lacks_become_null(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"a": math.nan, "b": {"c": (math.inf, 1.0)}}])
    assert json.loads((tmp_path / "a.jsonl").read_text()) == {"a": None, "b": {"c": [None, 1.0]}}
