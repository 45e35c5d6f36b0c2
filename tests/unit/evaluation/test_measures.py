"""What is known of each item: which it is, what it comes from, and two models on the same ones."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from alignflow.evaluation.measures import Items, Measure, compare, read_measures, write_measures


def test_items_are_known_by_their_content_and_equal_ones_told_apart() -> None:
    items = Items.of(["a", "b", "a"])
    assert len(set(items.ids)) == 3
    assert items.sources[0] == items.sources[2] != items.sources[1]
    # Another order, another file: the same names.
    assert Items.of(["b", "a", "c"]).ids[:2] == (items.ids[1], items.ids[0])


def test_comparison_meets_items_by_id_whatever_their_order() -> None:
    # Of items b and c, which both were judged on: (0.5 + 1) / 2 against (1 + 1) / 2.
    first = Measure.mean(Items.of("abc"), [0.0, 0.5, 1.0], is_share=True)
    other = Measure.mean(Items.of("dcb"), [0.0, 1.0, 1.0], is_share=True)
    compared = compare(first, other)
    assert (compared.value, compared.other_value) == (0.75, 1.0)
    assert compared.difference.value == pytest.approx(-0.25)
    assert compared.difference.limits == (-1.0, 1.0)
    assert (compared.num_items, compared.num_only_first, compared.num_only_other) == (2, 1, 1)


def test_comparison_of_strangers_has_no_value() -> None:
    compared = compare(Measure.mean(Items.of("a"), [1.0]), Measure.mean(Items.of("b"), [1.0]))
    assert compared.num_items == 0
    assert math.isnan(compared.difference.value)


def test_what_is_hard_for_both_models_cancels() -> None:
    # The second model is 0.1 better on every item: both scores are uncertain, their difference not.
    values = np.random.default_rng(0).normal(size=50)
    items = Items.of(range(50))
    first, second = Measure.mean(items, values), Measure.mean(items, values + 0.1)
    low, high = first.estimate().interval(0.95)
    assert high - low > 0.4
    assert compare(second, first).difference.interval(0.95) == pytest.approx((0.1, 0.1))


def test_perplexities_are_compared_as_such() -> None:
    # exp(8 / 4) less exp(4 / 4).
    items = Items.of("ab")
    first = Measure.over_tokens(items, [6.0, 2.0], [1, 3], "perplexity")
    other = Measure.over_tokens(items, [3.0, 1.0], [1, 3], "perplexity")
    assert compare(first, other).difference.value == pytest.approx(math.exp(2) - math.exp(1))


def test_item_counts_in_each_of_its_groups() -> None:
    right = Measure.mean(Items.of("abc"), [1.0, 0.0, 1.0])
    groups = right.by_group([["women"], ["women", "black"], ["black"]])
    assert {name: measure.value for name, measure in groups.items()} == {"black": 0.5, "women": 0.5}


def test_gap_without_spread_is_as_sure_as_its_smallest_group() -> None:
    # A share of 63 % goes unseen in 3 draws with probability (1 - 0.63)^3 = 5 %.
    items, groups = Items.of(range(23)), ["women"] * 20 + ["asian"] * 3
    none = Measure.group_gap(items, [0.0] * 23, groups)
    (high,) = none.estimate().bounds([0.95])
    assert high == pytest.approx(1 - 0.05 ** (1 / 3))
    assert compare(none, none).difference.bounds([0.95]) == [high]


def test_gaps_of_two_models_are_compared_on_the_groups_of_both() -> None:
    # Women 1/2 and asian 0/2 against 0/2 and 0/2; black people are in the second file alone.
    first = Measure.group_gap(Items.of("abcd"), [1, 0, 0, 0], ["women", "women", "asian", "asian"])
    groups = ["black", "women", "women", "asian", "asian"]
    other = Measure.group_gap(Items.of("eabcd"), [1, 0, 0, 0, 0], groups)
    compared = compare(first, other)
    assert (compared.value, compared.other_value, compared.difference.value) == (0.5, 0.0, 0.5)


def test_measures_survive_their_file_and_undefined_values_stay_so(tmp_path: Path) -> None:
    items = Items.of("ab")
    written = {
        "nll": Measure.over_tokens(items, [6.0, 2.0], [1, 3], "perplexity"),
        "f1": Measure.macro_f1(items, [0, 1], [0, 0]),
        "broken": Measure.mean(items, [math.nan, 1.0]),
    }
    write_measures(tmp_path / "measures.json", written)
    assert "NaN" not in (tmp_path / "measures.json").read_text()
    json.loads((tmp_path / "measures.json").read_text())
    read = read_measures(tmp_path / "measures.json")
    assert read["nll"].value == pytest.approx(math.exp(2))
    # Class 0: 1 hit of 1 and 2, so 2/3; class 1: 0.
    assert read["f1"].value == pytest.approx(1 / 3)
    assert math.isnan(read["broken"].value)
    for name, measure in written.items():
        np.testing.assert_array_equal(read[name].columns_NC, measure.columns_NC)
