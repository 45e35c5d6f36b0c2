"""The forms in which rows come, and the one they are brought into."""

from typing import Any, get_args

import pytest

from alignflow.cli.data import Kind
from alignflow.data_validation.canonical import SCHEMAS
from alignflow.data_validation.config import DataKind
from alignflow.data_validation.drafts import Turn
from alignflow.data_validation.forms import draft_row
from alignflow.data_validation.reasons import RowRefused

USER, REPLY, OTHER = (
    {"role": "user", "content": "Q"},
    {"role": "assistant", "content": "A"},
    {"role": "assistant", "content": "B"},
)
PAIR = {
    "prompt": [Turn("user", "Q")],
    "chosen": [Turn("assistant", "A")],
    "rejected": [Turn("assistant", "B")],
}


@pytest.mark.parametrize(
    ("row", "is_implicit"),
    [
        ({"prompt": "Q", "chosen": "A", "rejected": "B"}, False),
        ({"prompt": [USER], "chosen": [REPLY], "rejected": [OTHER]}, False),
        ({"prompt": "Q", "chosen_response": "A", "rejected_response": "B"}, False),
        ({"chosen": [USER, REPLY], "rejected": [USER, OTHER]}, True),
        ({"prompt": "Q", "chosen": [USER, REPLY], "rejected": [USER, OTHER]}, True),
        ({"prompt": "\n\nHuman: Q\n\nAssistant:", "chosen": " A", "rejected": " B"}, False),
        (
            {
                "chosen": "\n\nHuman: Q\n\nAssistant: A",
                "rejected": "\n\nHuman: Q\n\nAssistant: B",
            },
            True,
        ),
    ],
)
def test_every_form_of_a_pair_is_the_same_pair(row: dict[str, Any], is_implicit: bool) -> None:
    draft = draft_row(row, "preference")
    assert draft.parts == PAIR
    assert draft.is_prompt_implicit == is_implicit


@pytest.mark.parametrize(
    ("row", "question", "answer"),
    [
        ({"messages": [USER, REPLY]}, "Q", "A"),
        ({"prompt": "Q", "response": "A"}, "Q", "A"),
        ({"prompt": "Q", "completion": "A"}, "Q", "A"),
        ({"prompt": [USER], "completion": [REPLY]}, "Q", "A"),
        ({"instruction": "Q", "input": "", "output": "A"}, "Q", "A"),
        ({"instruction": "Q", "output": "A"}, "Q", "A"),
        ({"instruction": "Q", "input": "X", "output": "A"}, "Q\n\nX", "A"),
        ({"instruction": "Q", "instances": [{"input": "", "output": "A"}]}, "Q", "A"),
        ({"question": "Q", "answer": "A"}, "Q", "A"),
        ({"prompt": "\n\nHuman: Q\n\nAssistant:", "response": "A"}, "Q", "A"),
    ],
)
def test_every_form_of_a_demonstration_is_a_conversation(
    row: dict[str, Any], question: str, answer: str
) -> None:
    draft = draft_row(row, "sft")
    assert draft.parts == {"messages": [Turn("user", question), Turn("assistant", answer)]}


@pytest.mark.parametrize(
    ("row", "label"),
    [
        ({"prompt": "Q", "completion": "A", "label": True}, True),
        ({"prompt": "Q", "response": "A", "label": False}, False),
        ({"prompt": "Q", "response": "A", "label": None}, None),
        ({"prompt": "Q", "response": "A", "preference": "chosen"}, True),
        ({"prompt": "Q", "response": "A", "preference": "rejected"}, False),
        ({"prompt": "Q", "response": "A", "preference": None}, None),
        ({"prompt": [USER], "completion": [REPLY], "label": True}, True),
        ({"prompt": "\n\nHuman: Q\n\nAssistant:", "response": "A", "label": True}, True),
    ],
)
def test_every_form_of_a_judged_response_is_the_same(row: dict[str, Any], label: bool) -> None:
    draft = draft_row(row, "unpaired")
    assert draft.parts == {"prompt": PAIR["prompt"], "response": PAIR["chosen"]}
    assert draft.messages == [*PAIR["prompt"], *PAIR["chosen"]]
    assert draft.label is label


def test_scores_come_under_either_name() -> None:
    texts = {"prompt": "Q", "chosen_response": "A", "rejected_response": "B"}
    rewards = {"chosen_reward": 3, "rejected_reward": 1.5}
    assert draft_row(texts | rewards, "preference").scores == (3.0, 1.5)
    scores = {"score_chosen": None, "score_rejected": 1}
    assert draft_row(texts | scores, "preference").scores == (None, 1.0)


def test_turns_of_a_transcript_lose_the_white_space_around_them() -> None:
    text = "\n\nHuman: one\n\nAssistant: two\n\nmore\n\nHuman:  three \n\nAssistant:"
    draft = draft_row({"prompt": text, "chosen": " x", "rejected": "y"}, "preference")
    assert draft.parts["prompt"] == [
        Turn("user", "one"),
        Turn("assistant", "two\n\nmore"),
        Turn("user", "three"),
    ]
    assert draft.parts["chosen"] == [Turn("assistant", "x")]


def test_attributes_are_numbers_of_any_name() -> None:
    row = {"messages": [USER, REPLY], "attributes": {"quality": 3, "x": 2.5, "y": None}}
    assert draft_row(row, "steerlm").attributes == {"quality": 3.0, "x": 2.5, "y": None}


def test_every_kind_can_be_asked_for_on_the_command_line() -> None:
    assert {kind.value for kind in Kind} == set(get_args(DataKind)) == set(SCHEMAS)


def test_an_id_may_be_a_number() -> None:
    assert draft_row({"messages": [USER, REPLY], "id": 17}, "sft").id == "17"


@pytest.mark.parametrize(
    ("kind", "row", "reason"),
    [
        ("preference", {"prompt": "Q", "chosen": "A"}, "missing_key"),
        ("preference", {"chosen": "A", "rejected": "B"}, "missing_key"),
        ("preference", {"Prompt": "Q", "chosen": "A", "rejected": "B"}, "missing_key"),
        ("preference", {"prompt": 1, "chosen": "A", "rejected": "B"}, "wrong_type"),
        ("preference", {"prompt": "Q", "chosen": "A", "rejected": False}, "wrong_type"),
        ("preference", {"prompt": "Q", "chosen": ["A"], "rejected": "B"}, "wrong_type"),
        ("preference", {"prompt": [USER], "chosen": "A", "rejected": "B"}, "mixed_form"),
        ("preference", {"prompt": "Q", "chosen": [REPLY], "rejected": "B"}, "mixed_form"),
        ("preference", {"prompt": "Q", "chosen": [REPLY], "rejected": [OTHER]}, "mixed_form"),
        (
            "preference",
            {"chosen": [USER, REPLY], "rejected": [{"role": "user", "content": "R"}, OTHER]},
            "prefix_mismatch",
        ),
        (
            "preference",
            {"prompt": "Q", "chosen": "A", "rejected": "B", "score_chosen": "high"},
            "wrong_type",
        ),
        (
            "preference",
            {"prompt": "Q", "chosen": "A", "rejected": "B", "score_chosen": True},
            "wrong_type",
        ),
        ("sft", {}, "missing_key"),
        ("sft", {"conversations": []}, "missing_key"),
        ("sft", {"prompt": "Q"}, "missing_key"),
        ("sft", {"question": "Q"}, "missing_key"),
        ("sft", {"instruction": "Q", "input": ""}, "missing_key"),
        ("sft", {"instruction": "Q", "instances": []}, "empty_value"),
        ("sft", {"instruction": "Q", "instances": [{"output": "A"}] * 2}, "wrong_type"),
        ("sft", {"instruction": "Q", "instances": "A"}, "wrong_type"),
        ("sft", {"messages": "Q"}, "wrong_type"),
        ("sft", {"messages": ["Q"]}, "wrong_type"),
        ("sft", {"messages": [{"role": "user"}]}, "bad_message"),
        ("sft", {"messages": [{"role": "user", "content": [{"text": "Q"}]}]}, "wrong_type"),
        ("sft", {"prompt": [USER], "completion": "A"}, "mixed_form"),
        ("sft", {"messages": [USER, REPLY], "id": {"$oid": "x"}}, "wrong_type"),
        ("sft", {"messages": [USER, REPLY], "id": True}, "wrong_type"),
        ("unpaired", {"prompt": "Q", "label": True}, "missing_key"),
        ("unpaired", {"completion": "A", "label": True}, "missing_key"),
        ("unpaired", {"prompt": "Q", "completion": "A"}, "missing_key"),
        ("unpaired", {"prompt": "Q", "completion": "A", "label": 1}, "wrong_type"),
        ("unpaired", {"prompt": "Q", "completion": "A", "label": "true"}, "wrong_type"),
        ("unpaired", {"prompt": "Q", "completion": "A", "preference": "good"}, "wrong_type"),
        ("unpaired", {"prompt": [USER], "completion": "A", "label": True}, "mixed_form"),
        ("steerlm", {"messages": [USER, REPLY]}, "missing_key"),
        ("steerlm", {"messages": [USER, REPLY], "attributes": None}, "null_value"),
        ("steerlm", {"messages": [USER, REPLY], "attributes": [3]}, "wrong_type"),
        ("steerlm", {"messages": [USER, REPLY], "attributes": {"quality": "4"}}, "wrong_type"),
        ("steerlm", {"messages": [USER, REPLY], "attributes": {"quality": True}}, "wrong_type"),
    ],
)
def test_what_no_frame_can_hold_is_refused(
    kind: DataKind, row: dict[str, Any], reason: str
) -> None:
    with pytest.raises(RowRefused) as caught:
        draft_row(row, kind)
    assert caught.value.reason == reason
