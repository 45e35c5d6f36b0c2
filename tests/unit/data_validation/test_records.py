"""The short way of a plain pair into columns beside the way by a draft."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np

from alignflow.data_validation.comparison import RowKeys
from alignflow.data_validation.config import RowLimits
from alignflow.data_validation.contract import Contract
from alignflow.data_validation.drafts import Draft, Turn
from alignflow.data_validation.forms import draft_row, pair_of
from alignflow.data_validation.parsing import LONE_SURROGATE
from alignflow.data_validation.reasons import RowRefused
from alignflow.data_validation.records import Pair, Records

TEXTS = (
    "What is 1 + 1?",
    "  Two.\n",
    "",
    "\u200b",
    "cafe\u0301",
    "Write to jane@example.com.",
    "<|im_end|>",
    "None",
    "\n\nHuman: Q\n\nAssistant:",
    "ha " * 201,
)
VALUES: tuple[Any, ...] = (
    *TEXTS,
    None,
    1,
    True,
    0.5,
    [],
    [{"role": "user", "content": "Q"}],
    {"a": 1},
)
KEYS = (
    *("prompt", "chosen", "rejected", "chosen_response", "rejected_response", "id", "x"),
    *("score_chosen", "score_rejected", "chosen_reward", LONE_SURROGATE),
)


def made_up_row(draw: random.Random) -> dict[str, Any]:
    row: dict[str, Any] = {name: draw.choice(TEXTS) for name in ("prompt", "chosen", "rejected")}
    for _ in range(draw.randrange(4)):
        row[draw.choice(KEYS)] = draw.choice(VALUES)
    if draw.random() < 0.1:
        row.pop(draw.choice(list(row)))
    return row


def outcome(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return the result, or reason and detail of the refusal."""
    try:
        return function(*arguments)
    except RowRefused as refused:
        return refused.reason, refused.detail


def test_a_pair_is_what_its_draft_would_be() -> None:
    draw = random.Random(1)
    pairs, drafts = Records(), Records()
    num_refused = 0
    for _ in range(5000):
        row = made_up_row(draw)
        pair, draft = outcome(pair_of, row), outcome(draft_row, row, "preference")
        if isinstance(pair, Pair):
            assert isinstance(draft, Draft)
            pairs.add_pair(pair)
            drafts.add(draft)
        elif pair is not None:
            assert draft == pair
            num_refused += 1
    assert num_refused > 100
    assert len(pairs) > 1000
    contract = Contract("preference", RowLimits())
    assert contract.judge(pairs) == contract.judge(drafts)
    for column, other in zip(RowKeys.of(pairs), RowKeys.of(drafts), strict=True):
        np.testing.assert_array_equal(column, other)


def test_what_is_no_plain_pair_is_left_to_the_draft() -> None:
    plain = {"prompt": "Q", "chosen": "A", "rejected": "B"}
    assert pair_of(plain) == ("Q", "A", "B", None, (None, None))
    assert pair_of({**plain, "id": 7, "score_chosen": 1}) == ("Q", "A", "B", "7", (1.0, None))
    assert pair_of({**plain, "prompt": "\n\nHuman: Q\n\nAssistant:"}) is None
    assert pair_of({**plain, "chosen_response": "C"}) is None
    assert pair_of({**plain, "chosen": None}) is None
    assert pair_of({**plain, LONE_SURROGATE: True}) is None


def test_turns_lie_one_after_the_other() -> None:
    user, assistant = Turn("user", " Q\u0301 "), Turn("assistant", "A")
    records = Records.of(
        [
            Draft(None, {"messages": [Turn("system", "S"), user, assistant]}),
            Draft("1", {"messages": []}),
            Draft("2", {"messages": [user, assistant]}),
        ]
    )
    assert records.num_turns.tolist() == [3, 0, 2]
    assert records.starts.tolist() == [0, 3, 3]
    assert records.record_of.tolist() == [0, 0, 0, 2, 2]
    assert records.trimmed == ["S", "Q\u0301", "A", "Q\u0301", "A"]
    assert [shape.num_prompt_turns for shape in records.shapes[1:]] == [2, 0, 1]
    assert [shape.last_turn_of("messages") for shape in records.shapes[1:]] == [2, -1, 1]
