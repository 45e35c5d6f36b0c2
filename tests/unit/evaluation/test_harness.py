"""Tasks of lm-evaluation-harness as suites: its own code says what is asked and what it scores."""

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import pytest

from alignflow.errors import ConfigError, DataError
from alignflow.evaluation.config import EvaluationConfig
from alignflow.evaluation.suites import load_suite, score_names
from alignflow.evaluation.suites.harness import HarnessTask
from alignflow.evaluation.suites.toxigen import PROMPT

needs_lm_eval = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="lm-eval isn't installed (extra lm-eval)"
)

TOXIGEN = [
    {"text": "a", "toxicity_ai": 1.0, "toxicity_human": 1.0},
    {"text": "b", "toxicity_ai": 5.0, "toxicity_human": 4.0},
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


@needs_lm_eval
def test_a_task_asks_and_scores_as_lm_eval_defines_it(tmp_path: Path) -> None:
    suite = HarnessTask.load("toxigen", write(tmp_path / "a.jsonl", TOXIGEN))
    assert [(request.context, request.choices) for request in suite.requests()] == [
        (PROMPT.format(text=text), (" No", " Yes")) for text in ("a", "b")
    ]
    # By log-probability no and no, of labels no and yes; by that of a character no and yes:
    # -1.0 / 2 is below -1.2 / 3.
    result = suite.result([[-1.0, -2.0], [-1.0, -1.2]])
    assert result.scores == {"acc": 0.5, "acc_norm": 1.0}
    assert score_names("lm_eval:toxigen") == ("acc", "acc_norm")
    assert [item["acc"] for item in result.items] == [1.0, 0.0]
    assert result.items[1]["answers"][1] == {"text": " Yes", "logprob": -1.2}


@needs_lm_eval
def test_a_limit_cuts_the_items_of_a_task(tmp_path: Path) -> None:
    suite = load_suite("lm_eval:toxigen", write(tmp_path / "a.jsonl", TOXIGEN), limit=1)
    assert suite.num_items == len(suite.requests()) == 1


@needs_lm_eval
def test_contexts_that_differ_within_an_item_are_requests_of_their_own(tmp_path: Path) -> None:
    row = {"sentence": "The cup fits the box, for _ is small.", "answer": "1"}
    path = write(tmp_path / "a.jsonl", [row | {"option1": "the cup", "option2": "the box"}])
    suite = HarnessTask.load("winogrande", path)
    assert suite.num_items == 1
    assert [(request.context, request.choices) for request in suite.requests()] == [
        (f"The cup fits the box, for {option}", (" is small.",))
        for option in ("the cup", "the box")
    ]
    assert suite.result([[-1.0], [-2.0]]).scores == {"acc": 1.0}


@needs_lm_eval
def test_an_answer_that_is_not_a_number_has_no_score(tmp_path: Path) -> None:
    suite = load_suite("lm_eval:toxigen", write(tmp_path / "a.jsonl", TOXIGEN))
    scores = suite.result([[-1.0, math.nan], [-1.0, -1.2]]).scores
    assert all(map(math.isnan, scores.values()))


@needs_lm_eval
@pytest.mark.parametrize(
    ("task", "problem"),
    [
        ("no_such_task", "defines no task of this name"),
        ("mmlu", "defines no task of this name"),
        ("truthfulqa_gen", "asks for generate_until"),
        ("lambada_openai", "asks for loglikelihood"),
    ],
)
def test_a_task_that_is_no_suite_is_refused(task: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        score_names(f"lm_eval:{task}")


@needs_lm_eval
def test_a_file_that_lacks_the_fields_of_a_task_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.jsonl: lm-eval's task toxigen can't be made of it"):
        load_suite("lm_eval:toxigen", write(tmp_path / "a.jsonl", [{"statement": "a"}]))


def test_without_lm_eval_its_tasks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    suites = {"t": {"suite": "lm_eval:toxigen", "data": "x"}}
    with pytest.raises(ValueError, match=r"pip install 'alignflow\[lm-eval\]'"):
        EvaluationConfig.model_validate({"suites": suites})
