"""Histograms of lengths and how far they moved, by numbers worked out by hand."""

import math

import pytest

from alignflow.data_validation.drift import length_histogram, population_stability


def test_lengths_are_counted_by_their_binary_digits() -> None:
    # 0 has none, 1 has one, 2 and 3 have two, 4 to 7 three.
    assert length_histogram([0, 1, 2, 3, 7, 4]) == [1, 1, 2, 2]
    assert length_histogram([]) == []


def test_the_index_is_the_hand_worked_sum() -> None:
    # With half a row more: 1.5 and 3.5 of 5 against 3.5 and 1.5 of 5. Both bins have
    # |q - p| = 0.4 and |ln(q / p)| = ln(7 / 3), of the same sign: 2 x 0.4 x ln(7 / 3) = 0.678.
    assert population_stability([1, 3], [3, 1]) == pytest.approx(0.8 * math.log(7 / 3))
    assert population_stability([1, 3], [3, 1]) == population_stability([3, 1], [1, 3])


def test_equal_shares_have_not_moved_and_new_bins_have() -> None:
    assert population_stability([100, 200], [100, 200]) == 0
    assert population_stability([100, 200], [1000, 2000]) < 1e-4
    assert population_stability([0, 0, 300], [0, 0, 0, 300]) > 5
    assert population_stability([], []) == 0
