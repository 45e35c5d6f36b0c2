"""Scores worked out by hand."""

import math

import numpy as np
import pytest

from alignflow.evaluation.scorers import (
    group_gap,
    grouped,
    hits_and_claims,
    implicit_margins,
    macro_f1,
    mc1,
    mc2,
    perplexity,
    ratio,
)


def test_mc1_asks_whether_the_likeliest_answer_is_true() -> None:
    assert mc1([-2.0, -3.0, -4.0], [1, 0, 0]) == 1.0
    assert mc1([-3.0, -2.0, -4.0], [1, 0, 0]) == 0.0


def test_mc1_gives_a_tie_to_the_first_answer() -> None:
    assert mc1([-2.0, -2.0], [1, 0]) == 1.0
    assert mc1([-2.0, -2.0], [0, 1]) == 0.0


def test_mc2_is_the_share_of_mass_on_true_answers() -> None:
    # Masses 3, 1, 4 of which the first two are true: 4 / 8.
    assert mc2([math.log(3), math.log(1), math.log(4)], [1, 1, 0]) == pytest.approx(0.5)


def test_mc2_does_not_underflow() -> None:
    # exp(-2000) is 0 in float64; the shares are those of masses 1 and e.
    assert mc2([-2001.0, -2000.0], [1, 0]) == pytest.approx(1 / (1 + math.e))


def test_nan_among_the_log_probabilities_gives_nan() -> None:
    assert math.isnan(mc1([-1.0, math.nan], [1, 0]))
    assert math.isnan(mc2([-1.0, math.nan], [1, 0]))


def test_mismatched_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="2 log-probabilities for 1 labels"):
        mc1([-1.0, -2.0], [1])


def test_macro_f1_is_the_hand_worked_mean() -> None:
    # Class 1: 1 hit, claimed 2 times, true 2 times: F1 = 2/4. Class 0: 2 hits of 3 and 3: 4/6.
    sums = hits_and_claims([1, 1, 0, 0, 0], [1, 0, 1, 0, 0]).sum(axis=0)
    assert sums.tolist() == [2, 6, 1, 4]
    assert macro_f1(sums) == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_macro_f1_of_one_constant_prediction() -> None:
    # Class 0: 2 hits, claimed 4, true 2: 4/6. Class 1 is never right: 0.
    sums = hits_and_claims([0, 0, 0, 0], [0, 0, 1, 1]).sum(axis=0)
    assert macro_f1(sums) == pytest.approx(1 / 3)


def test_class_that_occurs_nowhere_does_not_count() -> None:
    # Without an item of class 1, only the F1 of class 0 is left: 1. Without any there is none.
    assert macro_f1(np.array([[4.0, 8.0, 0.0, 0.0], [0.0] * 4])) == pytest.approx(
        [1.0, math.nan], nan_ok=True
    )


def test_group_gap_is_that_of_the_groups_that_have_items() -> None:
    # Women 2/2, asian 1/4, and black 0/1, which the second set lacks.
    groups = ["women", "women", "asian", "asian", "asian", "asian", "black"]
    columns_NC = grouped([1, 1, 1, 0, 0, 0, 0], groups)
    sums = np.stack([columns_NC.sum(axis=0), columns_NC[:-1].sum(axis=0)])
    assert group_gap(sums).tolist() == [1.0, 0.75]


def test_perplexity_weighs_tokens_not_responses() -> None:
    # 8 nats over 4 tokens, not the mean of 6/1 and 2/3.
    assert perplexity(np.array([6.0 + 2.0, 1.0 + 3.0])) == pytest.approx(math.exp(2))
    assert perplexity(np.array([1e6, 1.0])) == math.inf


def test_scores_of_many_sets_at_once_are_those_of_each() -> None:
    assert ratio(np.array([[1.0, 2.0], [3.0, 4.0]])).tolist() == [0.5, 0.75]


def test_implicit_margin_is_the_hand_worked_difference() -> None:
    # Policy moved the chosen response by +1 and the rejected one by -2: 0.1 * 3.
    margins = implicit_margins([-4.0], [-9.0], [-5.0], [-7.0], beta=0.1)
    np.testing.assert_allclose(margins, [0.3])


def test_empty_sets_have_no_score() -> None:
    assert math.isnan(ratio(np.zeros(2)))
    assert math.isnan(macro_f1(hits_and_claims([], []).sum(axis=0)))
