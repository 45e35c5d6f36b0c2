"""Scores worked out by hand."""

import math

import numpy as np
import pytest

from alignflow.evaluation.scorers import (
    accuracy,
    group_accuracy,
    implicit_margins,
    macro_f1,
    mc1,
    mc2,
    mean,
    perplexity,
    ratio,
    resampled,
    resampled_mean,
    stderr,
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
    assert macro_f1([1, 1, 0, 0, 0], [1, 0, 1, 0, 0]) == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_macro_f1_of_one_constant_prediction() -> None:
    # Class 0: 2 hits, claimed 4, true 2: 4/6. Class 1 is never right: 0.
    assert macro_f1([0, 0, 0, 0], [0, 0, 1, 1]) == pytest.approx(1 / 3)


def test_group_accuracy_counts_an_item_in_each_of_its_groups() -> None:
    groups = [["women"], ["women", "black"], ["black"]]
    assert group_accuracy([1, 0, 1], [1, 1, 1], groups) == {"black": 0.5, "women": 0.5}


def test_perplexity_weighs_tokens_not_responses() -> None:
    # 8 nats over 4 tokens, not the mean of 6/1 and 2/3.
    assert perplexity([6.0, 2.0], [1, 3]) == pytest.approx(math.exp(2))
    assert perplexity([1e6], [1]) == math.inf


def test_implicit_margin_is_the_hand_worked_difference() -> None:
    # Policy moved the chosen response by +1 and the rejected one by -2: 0.1 * 3.
    margins = implicit_margins([-4.0], [-9.0], [-5.0], [-7.0], beta=0.1)
    np.testing.assert_allclose(margins, [0.3])


def test_empty_sets_have_no_score() -> None:
    assert math.isnan(mean([]))
    assert math.isnan(accuracy([], []))
    assert math.isnan(ratio([], []))
    assert math.isnan(stderr(resampled_mean([1.0])))


def test_stderr_of_a_coin_is_that_of_the_binomial() -> None:
    # 100 fair flips: sqrt(0.25 / 100) = 0.05.
    assert stderr(resampled_mean([0.0, 1.0] * 50)) == pytest.approx(0.05, rel=0.15)


def test_stderr_is_reproducible_and_zero_without_spread() -> None:
    values = np.arange(20.0)
    first, second = (resampled(lambda i: float(values[i].sum()), 20) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert stderr(resampled_mean([3.0] * 10)) == 0.0


def test_resamples_of_two_models_pair_up() -> None:
    # What is hard for one is hard for the other, and the second is 0.1 better on every item: both
    # scores are uncertain, their difference isn't.
    before = np.random.default_rng(0).normal(size=50)
    first, second = resampled_mean(before), resampled_mean(before + 0.1)
    assert stderr(first) > 0.1
    assert stderr(second - first) == pytest.approx(0.0, abs=1e-12)
