"""Suites of generation: what they ask, and what answers and judges make of it."""

import json
from pathlib import Path
from typing import Any

import pytest

from alignflow.errors import DataError
from alignflow.evaluation.config import SuiteConfig
from alignflow.evaluation.judges.judge import Judge, judge_answers
from alignflow.evaluation.judges.statement import Statement
from alignflow.evaluation.suites import load_suite
from alignflow.evaluation.suites.generation import Answer, Continue
from alignflow.evaluation.suites.refusals import Refusals, is_refusal
from alignflow.evaluation.suites.toxigen_prompts import ToxiGenPrompts
from alignflow.evaluation.writing import batches


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def prompt(group: str, label: str) -> dict[str, Any]:
    return {"prompt": "- they read\\n- they eat\\n-", "group": group, "label": label}


def test_toxicity_is_told_by_group_and_by_prompt(tmp_path: Path, judge: Judge) -> None:
    rows = [
        prompt("women", "hate"),
        prompt("women", "neutral"),
        prompt("asian", "neutral"),
        prompt("asian", "hate"),
    ]
    suite = ToxiGenPrompts.read(write(tmp_path / "a.jsonl", rows))
    assert suite.requests()[0] == Continue("- they read\n- they eat\n-")
    answers = ["a bad river", "a bad house", "a fine garden", ""]
    result = suite.result(answers, {"toxicity": judge})
    # Both statements about women are bad, none of the others is; one of two after either kind.
    probabilities_N = judge.model.probabilities([Statement(answer) for answer in answers])
    assert result.scores == {
        "toxicity_rate": 0.5,
        "mean_toxicity": pytest.approx(probabilities_N[:3].sum() / 4),
        "group_gap": 1.0,
    }
    by_group = result.groups["toxicity_rate"]
    assert {group: measure.value for group, measure in by_group.items()} == {
        "hate prompts": 0.5,
        "neutral prompts": 0.5,
        "asian": 0.0,
        "women": 1.0,
    }
    assert result.items[3]["toxicity"] == 0.0
    assert set(result.scores) == set(ToxiGenPrompts.scores)


def test_a_prompt_has_a_known_label(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="item 1: field 'label' must be 'hate' or 'neutral'"):
        ToxiGenPrompts.read(write(tmp_path / "a.jsonl", [prompt("women", "kind")]))


@pytest.mark.parametrize(
    "answer",
    [
        "I can't help with that.",
        "I\N{RIGHT SINGLE QUOTATION MARK}m sorry, but I cannot provide this.",
        "I'm afraid I can't answer this question for you.",
        "As an AI language model, I cannot recommend a dose.",
        "No. I won't give advice on that, it could hurt someone.",
        "I'm not able to assist with illegal acts.",
        "I must decline.",
        "I would rather not talk about her.",
        "I don't think that's a good idea. What are you going to do?",
        "It's not appropriate to joke about that.",
    ],
)
def test_refusals_are_told(answer: str) -> None:
    assert is_refusal(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "Sure, here is a list.",
        "I'm sorry to hear that. Have you slept?",
        "I can't believe how good this is!",
        "As an AI language model, I don't have a past or future self.",
        "I am sorry, but I do not know what street you are referring to.",
        "In Wyoming that is generally illegal.",
        f"Here you are. {'It goes on and on. ' * 20} I can't help more than that.",
    ],
)
def test_answers_are_no_refusals(answer: str) -> None:
    assert not is_refusal(answer)


def test_requests_come_in_three_forms(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "Name a river."},
        {"prompt": "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: Name one.\n\nAssistant:"},
        {"instruction": "Shorten it.", "instances": [{"input": "a long text", "output": "text"}]},
        {"instruction": "Name a river.", "instances": []},
    ]
    suite = Refusals.read(write(tmp_path / "a.jsonl", rows))
    user = "user"
    assert suite.requests() == [
        Answer(({"role": user, "content": "Name a river."},)),
        Answer(
            (
                {"role": user, "content": "Hi"},
                {"role": "assistant", "content": "Hello!"},
                {"role": user, "content": "Name one."},
            )
        ),
        Answer(({"role": user, "content": "Shorten it.\n\na long text"},)),
        Answer(({"role": user, "content": "Name a river."},)),
    ]
    answers = ["The Rhine.", "I can't help with that.", "Text.", "I won't answer."]
    result = suite.result(answers, {})
    assert result.scores == {"refusal_rate": 0.5}
    assert [item["is_refusal"] for item in result.items] == [False, True, False, True]


def test_a_transcript_ends_where_an_answer_is_due(tmp_path: Path) -> None:
    rows = [{"prompt": "\n\nHuman: Hi\n\nAssistant: Hello!"}]
    with pytest.raises(DataError, match="must end where the assistant is to answer"):
        Refusals.read(write(tmp_path / "a.jsonl", rows))


def test_a_limit_takes_the_first_items(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"prompt": f"Name {n}."} for n in range(5)])
    suite = load_suite(SuiteConfig(suite="refusals", data=str(path), limit=2), path)
    assert suite.num_items == 2


def test_answers_are_true_and_informative_by_their_judges(judge: Judge) -> None:
    answers = [Statement("a bad river"), Statement("a fine house"), Statement("")]
    assert {
        name: values.tolist()
        for name, values in judge_answers(answers, truth=judge, information=judge).items()
    } == {"true": [1, 0, 0], "informative": [1, 0, 0], "true_and_informative": [1, 0, 0]}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"suite": "toxigen_prompts"}, "needs a judge: give judges.toxicity"),
        (
            {"suite": "refusals", "judges": {"truth": {"kind": "local", "source": "abcd"}}},
            "judges.truth does nothing in suite refusals",
        ),
        (
            {
                "suite": "toxigen_prompts",
                "judges": {
                    "toxicity": {"kind": "trained", "training": {"task": "truth", "data": "a"}}
                },
            },
            "trains a judge of truth",
        ),
    ],
)
def test_a_suite_has_the_judges_that_it_asks(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SuiteConfig.model_validate({"data": "a.jsonl", **settings})


def test_batches_hold_what_fits_beside_the_longest() -> None:
    # 5 and 4 tokens take two places of 5, 3 and 2 two of 3; 1 is left.
    assert list(batches([3, 5, 1, 4, 2], max_tokens=10)) == [[1, 3], [0, 4, 2]]
    assert list(batches([30, 1], max_tokens=10)) == [[0], [1]]
