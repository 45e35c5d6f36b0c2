"""The judge of answers, worked out by hand: outcomes of both orders, accuracy, its questions."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from pydantic import ValidationError

from alignflow.evaluation.answer_judge.comparisons import (
    Asked,
    Comparison,
    _up_to_the_verdict,
    question,
)
from alignflow.evaluation.answer_judge.config import AnswerJudgeConfig
from alignflow.evaluation.answer_judge.run import Judged, quality_result, win_result
from alignflow.evaluation.scorers import outcomes_in_both_orders
from alignflow.training.megatron.trees import Branch, Tree

PROMPT = [{"role": "user", "content": "why?"}]
JUDGE = AnswerJudgeConfig.model_validate({"model": {"source": "org/judge"}})


def judged(*margins: Sequence[float]) -> Judged:
    comparisons = [Comparison(PROMPT, f"answer {n}", "so") for n in range(len(margins))]
    return Judged(Asked(comparisons, trees=[], num_left_out=0), np.array(margins).reshape(-1, 2))


def test_an_answer_wins_only_if_it_is_preferred_in_both_orders() -> None:
    margins = [(2.0, 0.1), (-0.1, -3.0), (5.0, -0.1), (-0.1, 5.0), (1.0, 0.0), (0.0, 0.0)]
    assert outcomes_in_both_orders(np.array(margins)).tolist() == [1, 0, 0.5, 0.5, 0.5, 0.5]
    assert np.isnan(outcomes_in_both_orders(np.array([[math.nan, 1.0]]))).all()


def test_swapped_models_mirror_the_outcome() -> None:
    margins_N2 = np.random.default_rng(0).normal(size=(50, 2))
    # The same question is the other order's when the models change places.
    swapped_N2 = -margins_N2[:, ::-1]
    outcomes_N = outcomes_in_both_orders(margins_N2)
    assert set(outcomes_N) == {0.0, 0.5, 1.0}
    assert (outcomes_in_both_orders(swapped_N2) == 1 - outcomes_N).all()


def test_margins_are_those_of_the_first_answer_in_either_place() -> None:
    # log p(A), log p(B) with the first answer as A, then with it as B.
    logprobs = [[-1.0, -3.0], [-2.5, -0.5], [-1.0, -1.5], [-1.0, -1.25]]
    asked = Asked([], [], num_left_out=0)
    assert asked.margins(logprobs).tolist() == [[2.0, 2.0], [0.5, -0.25]]


def test_a_verdict_is_the_first_token_in_which_the_replies_differ() -> None:
    # 7 and 8 stand for an empty block of thoughts, 2 for what ends a turn.
    replies = [Branch.scored([7, 8, letter, 2]) for letter in (65, 66)]
    tree = _up_to_the_verdict(Tree([1, 5], replies))
    assert [branch.tokens for branch in tree.branches] == [[7, 8, 65], [7, 8, 66]]
    assert [branch.is_scored for branch in tree.branches] == [[False, False, True]] * 2


def test_accuracy_counts_a_pair_decided_in_one_order_by_half() -> None:
    # Right in both orders twice, in one order once, in none once: (2 + 1/2) / 4.
    result = quality_result(judged((1, 1), (2, 3), (1, -1), (-1, -1)))
    assert result.scores == {"accuracy": 0.625, "consistency": 0.75}
    assert [item["outcome"] for item in result.items] == [1.0, 1.0, 0.5, 0.0]
    assert result.items[2]["verdicts"] == ["chosen", "rejected"]


def test_a_judge_that_goes_by_the_place_alone_has_the_accuracy_of_chance() -> None:
    result = quality_result(judged((4, -4), (3, -5), (6, -2)))
    assert result.scores == {"accuracy": 0.5, "consistency": 0.0}


def test_win_rates_are_by_opponent_and_one_without_a_common_prompt_has_none() -> None:
    result = win_result(
        {"base": judged((1, 1), (1, -1)), "sft": judged((-1, -2)), "champion": judged()}
    )
    assert result.scores == {"base": 0.75, "sft": 0.0}
    assert [(item["against"], item["verdicts"]) for item in result.items] == [
        ("base", ["aligned", "aligned"]),
        ("base", ["aligned", "other"]),
        ("sft", ["other", "other"]),
    ]


def test_a_question_holds_its_texts_as_they_are() -> None:
    asked = question(
        "{prompt} A: {answer_a} B: {answer_b} {braces}", "{answer_b}?", "{prompt}", r"\1"
    )
    assert asked == r"{answer_b}? A: {prompt} B: \1 {braces}"


def test_both_orders_differ_by_the_places_of_the_answers() -> None:
    first, second = Comparison(PROMPT, "yes", "no").questions(JUDGE.instructions)
    assert "[The prompt]\nwhy?\n\n[Answer A]\nyes\n\n[Answer B]\nno\n" in first
    assert "[The prompt]\nwhy?\n\n[Answer A]\nno\n\n[Answer B]\nyes\n" in second
    turns = [
        *PROMPT,
        {"role": "assistant", "content": "so"},
        {"role": "user", "content": "why so?"},
    ]
    (asked, _) = Comparison(turns, "yes", "no").questions("{prompt}")
    assert asked == "user: why?\n\nassistant: so\n\nuser: why so?"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"instructions": "{prompt} {answer_a}"},
            r"\{answer_b\} is missing; name each of \{prompt",
        ),
        ({"instructions": "{prompt} {answer_A} {answer_b}"}, r"\{answer_a\} is missing"),
        ({"min_accuracy": 60}, "min_accuracy"),
        ({"model": "org/judge"}, "model"),
        ({"max_pair": 3}, "max_pair"),
    ],
)
def test_a_mistake_in_the_recipe_is_named(changes: dict[str, object], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        JUDGE.replaced(**changes)
