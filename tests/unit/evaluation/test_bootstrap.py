"""Confidence bounds: those of scipy where it has them, and what they promise, by simulation."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from alignflow.evaluation import bootstrap, scorers
from alignflow.evaluation.bootstrap import (
    NUM_RESAMPLES,
    SEED,
    Estimate,
    fewest_sources,
    resampled,
)
from alignflow.evaluation.measures import Items, Measure, compare

Floats = NDArray[np.float64]


def mean_of(values: Floats, limits: tuple[float, float] | None = None) -> Estimate:
    return Estimate.of_sums(scorers.ratio, np.stack([values, np.ones(len(values))], axis=1), limits)


def skewed(size: int) -> Floats:
    return np.random.default_rng(7).exponential(size=size)


def test_bounds_of_a_mean_are_those_of_scipy() -> None:
    values = skewed(40)
    expected = stats.bootstrap(
        (values,), np.mean, n_resamples=NUM_RESAMPLES, rng=np.random.default_rng(SEED)
    ).confidence_interval
    assert mean_of(values).interval(0.95) == pytest.approx(expected, rel=1e-12)


def test_bounds_of_a_function_of_two_sums_are_those_of_scipy() -> None:
    sums, counts = skewed(60), np.random.default_rng(8).integers(1, 9, size=60)
    expected = stats.bootstrap(
        (sums, counts),
        lambda x, n, axis: np.exp(x.sum(axis) / n.sum(axis)),
        paired=True,
        confidence_level=0.9,
        n_resamples=NUM_RESAMPLES,
        rng=np.random.default_rng(SEED),
    ).confidence_interval
    columns = np.stack([sums, counts], axis=1)
    assert Estimate.of_sums(scorers.perplexity, columns).interval(0.9) == pytest.approx(
        expected, rel=1e-12
    )


def test_paired_difference_is_that_of_scipy() -> None:
    first, second = skewed(50), skewed(50) + np.random.default_rng(9).normal(0.1, 0.2, size=50)
    expected = stats.bootstrap(
        (second, first),
        lambda a, b, axis: a.mean(axis) - b.mean(axis),
        paired=True,
        n_resamples=NUM_RESAMPLES,
        rng=np.random.default_rng(SEED),
    ).confidence_interval
    # The sources are drawn in the order of their names, which those of the items must be then.
    items = Items(tuple(f"{n:02}" for n in range(50)), tuple(f"{n:02}" for n in range(50)))
    compared = compare(Measure.mean(items, second), Measure.mean(items, first))
    assert compared.difference.interval(0.95) == pytest.approx(expected, rel=1e-12)


def test_draws_are_the_same_however_many_are_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    values = skewed(33)
    whole, bounds = resampled(lambda counts: counts @ values, 33), mean_of(values).interval(0.95)
    assert whole.shape == (NUM_RESAMPLES,)
    monkeypatch.setattr(bootstrap, "_BLOCK", 100)
    np.testing.assert_allclose(resampled(lambda counts: counts @ values, 33), whole, rtol=1e-13)
    assert mean_of(values).interval(0.95) == pytest.approx(bounds, rel=1e-12)


def test_sources_without_spread_have_the_exact_bounds_of_clopper_and_pearson() -> None:
    low, high = mean_of(np.ones(50), (0.0, 1.0)).interval(0.95)
    exact = stats.binomtest(50, 50).proportion_ci(0.95, method="exact")
    assert (low, high) == pytest.approx((exact.low, exact.high))
    low, high = mean_of(np.zeros(50), (0.0, 1.0)).interval(0.95)
    exact = stats.binomtest(0, 50).proportion_ci(0.95, method="exact")
    assert (low, high) == pytest.approx((exact.low, exact.high))


def test_what_has_no_limits_and_no_spread_is_taken_at_its_value() -> None:
    assert mean_of(np.full(40, 0.1)).interval(0.95) == pytest.approx((0.1, 0.1))


def test_one_source_and_undefined_scores_have_no_bounds() -> None:
    for values in ([1.0], [], [1.0, math.nan, 0.0]):
        assert all(math.isnan(bound) for bound in mean_of(np.array(values)).interval(0.95))


@pytest.mark.parametrize(("confidence", "fewest"), [(0.9, 22), (0.95, 29), (0.99, 44)])
def test_fewest_sources_would_show_what_concerns_a_tenth(confidence: float, fewest: int) -> None:
    assert fewest_sources(confidence) == fewest
    assert 0.9**fewest <= 1 - confidence < 0.9 ** (fewest - 1)


def test_answers_that_hang_together_count_as_one_source() -> None:
    # Ten answers to each of 40 prompts, all alike: drawn singly the error would be sqrt(10) less.
    of_prompts = np.random.default_rng(3).normal(size=40)
    values = np.repeat(of_prompts, 10)
    prompts = [prompt for prompt in range(40) for _ in range(10)]
    clustered = Measure.mean(Items.of(range(400), sources=prompts), values).estimate()
    single = Measure.mean(Items.of(range(400)), values).estimate()
    (low, high), (near, far) = clustered.interval(0.95), single.interval(0.95)
    assert clustered.value == pytest.approx(single.value)
    assert (high - low) / (far - near) == pytest.approx(math.sqrt(10), rel=0.15)
    error = of_prompts.std(ddof=1) / math.sqrt(40)
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.1)


def coins(share: float) -> Callable[[np.random.Generator, int], Floats]:
    return lambda draws, size: (draws.random(size) < share).astype(np.float64)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("draw", "truth"),
    [
        (coins(0.5), 0.5),
        (coins(0.9), 0.9),
        (lambda draws, size: draws.normal(size=size), 0.0),
        (lambda draws, size: draws.exponential(size=size), 1.0),
    ],
    ids=["half", "nine_tenths", "normal", "exponential"],
)
@pytest.mark.parametrize("size", [29, 100])
def test_one_sided_bounds_of_95_percent_hold_as_often(
    draw: Callable[[np.random.Generator, int], Floats], truth: float, size: int
) -> None:
    """The bounds are too narrow by a known little at 29 items; 1000 sets tell 0.95 to 0.014."""
    below = above = 0
    for seed in range(1000):
        values = draw(np.random.default_rng(seed), size)
        is_share = bool(values.min() >= 0 and values.max() <= 1)
        low, high = mean_of(values, (0.0, 1.0) if is_share else None).bounds([0.05, 0.95])
        below += low <= truth + 1e-9
        above += high >= truth - 1e-9
    print(f"{size} items: lower bound {below / 10:.1f} %, upper bound {above / 10:.1f} %")
    assert min(below, above) >= 910
    if size == 100:
        assert min(below, above) >= 925


@pytest.mark.slow
def test_paired_and_clustered_bounds_of_95_percent_hold_as_often() -> None:
    """Two models on 60 prompts of three answers each, whose difficulty they share."""
    held = 0
    for seed in range(1000):
        draws = np.random.default_rng(seed)
        prompts = np.repeat(np.arange(60), 3)
        difficulty = draws.normal(size=60)[prompts]
        effect = 0.2 + 0.5 * draws.normal(size=60)[prompts]
        items = Items.of(range(180), sources=prompts.tolist())
        first = Measure.mean(items, difficulty + draws.normal(size=180))
        second = Measure.mean(items, difficulty + effect + draws.normal(size=180))
        low, high = compare(second, first).difference.interval(0.95)
        held += low <= 0.2 <= high
    print(f"95 % intervals of a difference hold in {held / 10:.1f} %")
    assert 925 <= held <= 970
