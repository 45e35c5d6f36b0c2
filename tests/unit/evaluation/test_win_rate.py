"""Win rates worked out by hand, and a win by length that the controlled rate takes away."""

import math

import numpy as np
import pytest
from scipy import optimize

from alignflow.evaluation.measures import Items, Measure
from alignflow.evaluation.win_rate import (
    JUDGED_WIN_RATES,
    Answers,
    Duel,
    judged_duels,
    length_controlled_rate,
    win_rates,
)


def answers(prompts: str, rewards: list[float], lengths: list[float]) -> Answers:
    return Answers(Items.of(prompts), np.array(rewards), np.array(lengths))


def test_wins_ties_and_losses_are_counted_prompt_by_prompt() -> None:
    first = answers("abcd", [2.0, 1.05, 0.0, 9.0], [10, 10, 10, 10])
    other = answers("cbax", [1.0, 1.0, 1.0, 0.0], [5, 6, 7, 8])
    duel = Duel.between(first, other, tie_margin=0.1)
    # a: 2 against 1, won; b: 1.05 against 1, a tie; c: 0 against 1, lost; d is not shared.
    assert duel.outcomes_N.tolist() == [1.0, 0.5, 0.0]
    assert duel.lengths_N2.tolist() == [[10, 7], [10, 6], [10, 5]]
    assert duel.win_rate().value == 0.5
    assert duel.ties == pytest.approx(1 / 3)
    assert Duel.between(first, other, tie_margin=0.0).outcomes_N.tolist() == [1.0, 1.0, 0.0]


def test_answers_come_from_the_measures_of_an_evaluation() -> None:
    measures = {
        # The second prompt's answer was empty: it has a length but no reward.
        "samples/mean_reward": Measure.mean(Items.of("ac"), [1.5, -0.5]),
        "samples/mean_tokens": Measure.mean(Items.of("abc"), [7, 1, 9]),
    }
    found = Answers.of_measures(measures)
    assert found is not None
    assert found.rewards_N.tolist() == [1.5, -0.5]
    assert found.num_tokens_N.tolist() == [7, 9]
    assert Answers.of_measures({}) is None


def test_without_a_difference_in_length_the_controlled_rate_is_the_rate() -> None:
    # 12 wins of 16 at equal length: a logit of ln 3, which the prior draws in by
    # ln 3 / 25 / (16 * 0.75 * 0.25) = 0.0146, and the rate by 0.0146 * 0.75 * 0.25 = 0.003.
    outcomes = np.array([1.0] * 12 + [0.0] * 4)
    rate = length_controlled_rate(outcomes, np.zeros(16), np.ones(16))
    assert rate == pytest.approx(0.75 - 0.0027, abs=5e-4)
    # Always three tokens longer: for what of its wins can't be told.
    assert math.isnan(length_controlled_rate(outcomes, np.full(16, 3.0), np.ones(16)))


def test_fit_is_the_minimum_that_scipy_finds() -> None:
    draws = np.random.default_rng(4)
    differences = draws.normal(10, 40, size=30)
    outcomes = draws.choice([0.0, 0.5, 1.0], size=30)
    weights = draws.integers(0, 4, size=30).astype(float)
    length = np.tanh(differences / differences.std())

    def loss(coefficients: tuple[float, float]) -> float:
        logits = coefficients[0] + coefficients[1] * length
        fit = weights @ (np.logaddexp(0, logits) - outcomes * logits)
        return float(fit + (coefficients[0] ** 2 + coefficients[1] ** 2) / 50)

    expected = optimize.minimize(loss, (0.0, 0.0), tol=1e-12).x[0]
    rate = length_controlled_rate(outcomes, differences, weights)
    assert rate == pytest.approx(1 / (1 + math.exp(-expected)), abs=1e-6)


def test_many_weightings_at_once_are_each_by_itself() -> None:
    draws = np.random.default_rng(5)
    differences, outcomes = draws.normal(size=12), draws.choice([0.0, 1.0], size=12)
    weights = draws.integers(0, 3, size=(6, 12)).astype(float)
    rates = length_controlled_rate(outcomes, differences, weights)
    alone = [float(length_controlled_rate(outcomes, differences, row)) for row in weights]
    assert rates == pytest.approx(alone, abs=1e-8)


def test_win_by_length_alone_is_taken_away() -> None:
    # Longer answers win 9 times in 10, shorter ones lose as often; the model answers at length to
    # 80 of 100 prompts and has nothing else to its advantage.
    draws = np.random.default_rng(6)
    is_longer = np.arange(400) % 5 > 0
    lengths = np.where(is_longer, 200.0, 50.0) + draws.normal(size=400)
    is_won = np.where(draws.random(400) < 0.9, is_longer, ~is_longer)
    prompts = Items.of(range(400))
    first = Answers(prompts, np.where(is_won, 1.0, -1.0), lengths)
    other = Answers(prompts, np.zeros(400), np.full(400, 125.0))
    duel = Duel.between(first, other, tie_margin=0.0)
    low, _ = duel.win_rate().estimate().interval(0.95)
    assert low > 0.65
    controlled = duel.length_controlled()
    low, high = controlled.estimate().interval(0.95)
    assert low < 0.5 < high
    assert controlled.value == pytest.approx(0.5, abs=0.12)


def test_model_that_always_wins_has_a_finite_rate_and_honest_bounds() -> None:
    prompts = Items.of(range(40))
    lengths = np.random.default_rng(7).integers(5, 50, size=40).astype(float)
    first = Answers(prompts, np.ones(40), lengths)
    duel = Duel.between(first, Answers(prompts, np.zeros(40), lengths[::-1]), tie_margin=0.0)
    assert duel.win_rate().value == 1.0
    assert 0.97 < duel.length_controlled().value < 1.0
    assert duel.win_rate().estimate().interval(0.95)[0] == pytest.approx(0.025 ** (1 / 40))


def test_prompts_of_one_source_are_drawn_together() -> None:
    items = Items.of(range(6), sources=[0, 0, 1, 1, 2, 2])
    first = Answers(items, np.array([1.0, 1, 1, 1, -1, -1]), np.ones(6))
    duel = Duel.between(first, Answers(items, np.zeros(6), np.ones(6)), tie_margin=0.0)
    assert duel.length_controlled().estimate().num_sources == 3


def test_models_without_a_common_prompt_have_no_rate() -> None:
    duel = Duel.between(answers("a", [1.0], [1]), answers("b", [1.0], [1]), tie_margin=0.0)
    assert math.isnan(duel.win_rate().value)
    assert math.isnan(duel.ties)
    assert math.isnan(duel.length_controlled().value)


def test_duels_that_a_judge_decided_take_the_lengths_from_the_evaluations() -> None:
    models = {
        "aligned": {"samples/mean_tokens": Measure.mean(Items.of("abc"), [7, 8, 9])},
        "sft": {"samples/mean_tokens": Measure.mean(Items.of("cab"), [1, 2, 3])},
        "champion": {},
    }
    judged = {
        "answer_judge/accuracy": Measure.mean(Items.of("xy"), [1, 1]),
        # One prompt was too long for the judge.
        "judged_win_rate/sft": Measure.mean(Items.of("ba"), [0.5, 1.0]),
        "judged_win_rate/champion": Measure.mean(Items.of("a"), [1.0]),
    }
    found = judged_duels(models, judged)
    assert list(found) == ["sft"]
    assert found["sft"].outcomes_N.tolist() == [0.5, 1.0]
    assert found["sft"].lengths_N2.tolist() == [[8, 3], [7, 2]]
    rates = win_rates(found, JUDGED_WIN_RATES)
    assert list(rates) == ["judged_win_rate/sft", "length_controlled_judged_win_rate/sft"]
    assert rates["judged_win_rate/sft"].value == 0.75
