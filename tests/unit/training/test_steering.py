import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from alignflow.data_validation.canonical import ATTRIBUTES
from alignflow.errors import DataError
from alignflow.training.chat import ChatTokenizer, Message
from alignflow.training.rows import RowSummary, TokenRows
from alignflow.training.steering import Steering, label, steered

TALK: list[Message] = [
    {"role": "user", "content": "first question"},
    {"role": "assistant", "content": "first answer"},
    {"role": "user", "content": "second question\n"},
    {"role": "assistant", "content": "second answer"},
]
TEMPLATES = {
    "chatml": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    # Writes a system turn of its own, and trims.
    "own system": (
        "<|im_start|>system\nBe brief.<|im_end|>\n{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{{ m.content | trim }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    # Refuses a system turn, and turns that don't alternate.
    "no system": (
        "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}"
        "<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
}


def rows_of(*ratings: dict[str, float]) -> TokenRows:
    values = [[row.get(name, math.nan) for name in ATTRIBUTES] for row in ratings]
    return TokenRows(
        tokens=np.arange(len(ratings), dtype=np.int32),
        is_learnt=np.ones(len(ratings), dtype=np.bool_),
        starts_R1=np.arange(len(ratings) + 1),
        shared_I=np.zeros(len(ratings), dtype=np.int64),
        labels_IL=np.array(values, dtype=np.float32),
        rows_per_item=1,
        summary=RowSummary("digest", 0, {}, ()),
    )


def test_label_is_one_line_in_the_order_of_the_attributes() -> None:
    assert label({"humor": 3, "quality": 4, "toxicity": 0}) == (
        "attributes: quality:4,toxicity:0,humor:3"
    )


@pytest.mark.parametrize(
    ("ratings", "reason"),
    [
        ({}, "no_ratings"),
        ({"charm": 4}, "unknown_attribute"),
        ({"quality": 5}, "out_of_range"),
        ({"quality": -1}, "out_of_range"),
        ({"quality": 2.5}, "out_of_range"),
        ({"quality": True}, "out_of_range"),
    ],
)
def test_label_of_what_is_no_rating_is_refused(ratings: dict[str, Any], reason: str) -> None:
    with pytest.raises(DataError) as refusal:
        label(ratings)
    assert refusal.value.reason == reason


def test_the_last_user_turn_ends_with_the_ratings() -> None:
    found = steered(TALK, {"quality": 4})
    assert found[2] == {"role": "user", "content": "second question\n\nattributes: quality:4"}
    assert [found[i] for i in (0, 1, 3)] == [TALK[i] for i in (0, 1, 3)]
    # A prompt is the conversation without its answer.
    assert steered(TALK[:3], {"quality": 4}) == found[:3]
    with pytest.raises(DataError, match="no user turn"):
        steered([{"role": "system", "content": "Be brief."}], {"quality": 4})


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_template_holds_the_ratings_and_learns_the_answer_alone(
    make_tokenizer: Callable[..., PreTrainedTokenizerFast], name: str
) -> None:
    tokenizer = make_tokenizer(TEMPLATES[name], ["<|im_start|>", "<|im_end|>"], eos="<|im_end|>")
    chat = ChatTokenizer(tokenizer, name)
    ratings = {"quality": 4, "toxicity": 0}
    rendered = chat.render(steered(TALK, ratings), learn="last_turn")
    (row,) = chat.tokenize([rendered])
    chat.check(rendered, row)
    assert tokenizer.decode(row.tokens_T[row.is_learnt_T]) == "second answer<|im_end|>"
    # What training puts before an answer is what a model is asked with.
    prompt = chat.prompt(steered(TALK[:3], ratings))
    assert prompt == row.tokens_T[: row.is_learnt_T.argmax()].tolist()
    assert "second question\n\nattributes: quality:4,toxicity:0<|im_end|>" in tokenizer.decode(
        prompt
    )


class TestSteering:
    def test_what_is_not_named_takes_its_commonest_value_and_what_is_unknown_is_left_out(
        self,
    ) -> None:
        rows = rows_of({"quality": 1, "humor": 2}, {"quality": 0, "humor": 2}, {"humor": 4})
        steering = Steering.of_rows(rows, {"quality": 4, "violence": 0})
        assert steering.wanted == {"quality": 4, "humor": 2}

    def test_prompt_asks_for_what_is_wanted_with_changes(self) -> None:
        steering = Steering({"quality": 4, "toxicity": 0})
        assert steering.prompt(TALK[:1])[0]["content"].endswith("quality:4,toxicity:0")
        (turn,) = steering.prompt(TALK[:1], {"toxicity": 3})
        assert turn["content"] == "first question\n\nattributes: quality:4,toxicity:3"
        with pytest.raises(DataError, match="wasn't trained on the attribute 'humor'"):
            steering.prompt(TALK[:1], {"humor": 4})

    def test_it_comes_back_from_its_file(self, tmp_path: Path) -> None:
        assert Steering.load(tmp_path) is None
        steering = Steering({"quality": 4, "toxicity": 0})
        steering.save(tmp_path)
        assert Steering.load(tmp_path) == steering
        # For people and other programs the file says what to write.
        content = json.loads((tmp_path / "steerlm.json").read_text())
        assert content["label"] == "attributes: quality:4,toxicity:0"

    @pytest.mark.parametrize("content", ["", "[]", '{"wanted": {"charm": 4}}', '{"wanted": 4}'])
    def test_a_broken_file_is_refused(self, tmp_path: Path, content: str) -> None:
        (tmp_path / "steerlm.json").write_text(content)
        with pytest.raises(DataError, match="must hold the ratings wanted"):
            Steering.load(tmp_path)
