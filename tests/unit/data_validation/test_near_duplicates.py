"""Near duplicates: what MinHash finds is what the sets of word triples have in common."""

import random
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from alignflow.data_validation.near_duplicates import (
    NUM_PLACES,
    find_near_duplicates,
    places_of_band,
    signatures_of,
)


def words(pick: random.Random, count: int) -> list[str]:
    return [f"w{pick.randrange(10**6)}" for _ in range(count)]


def jaccard(one: list[str], other: list[str]) -> float:
    """The share of triples in common, by sets; the last two stand with what isn't there."""
    sets = [
        {(*text[at : at + 3], *[""] * (at + 3 - len(text))) for at in range(len(text))}
        for text in (one, other)
    ]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def edited(text: list[str], pick: random.Random, num_changes: int) -> list[str]:
    changed = list(text)
    for at in pick.sample(range(len(text)), num_changes):
        changed[at] = f"x{pick.randrange(10**6)}"
    return changed


def test_signatures_agree_as_the_sets_do() -> None:
    pick = random.Random(0)
    errors = []
    for _ in range(100):
        text = words(pick, 60)
        other = edited(text, pick, pick.randrange(1, 8))
        first, second = signatures_of(pl.Series([" ".join(text), " ".join(other)]))
        errors.append(float((first == second).mean()) - jaccard(text, other))
    # A place agrees by chance as a coin does: the deviation is at most sqrt(1/4/128) = 0.044.
    assert abs(np.mean(errors)) < 0.015
    assert np.std(errors) < 0.055


def test_case_and_punctuation_do_not_count_and_order_does() -> None:
    texts = pl.Series(["One two, three four!", "one TWO three\nfour", "four three two one", ""])
    first, second, reversed_, empty = signatures_of(texts)
    assert (first == second).all()
    assert (first != reversed_).mean() > 0.9
    assert len(empty) == NUM_PLACES


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.9, 1.0])
def test_a_pair_at_the_threshold_shares_a_band_nearly_surely(threshold: float) -> None:
    places = places_of_band(threshold)
    num_bands = NUM_PLACES // places
    assert 1 - (1 - threshold**places) ** num_bands > 0.97


def test_rows_that_nearly_repeat_an_earlier_one_are_found(tmp_path: Path) -> None:
    pick = random.Random(1)
    originals = [words(pick, 80) for _ in range(150)]
    # One word of 80 is in 3 triples: 77 of 83 are shared, 0.93. Twelve words apart, as far as may
    # be, leave some 44 of 116, 0.38.
    near = [edited(text, pick, 1) for text in originals[:50]]
    far = [edited(text, pick, 12) for text in originals[50:100]]
    texts = [" ".join(text) for text in [*originals, *near, *far]]
    batches = [pl.Series(texts[start : start + 64]) for start in range(0, len(texts), 64)]
    earlier = find_near_duplicates(batches, 0.8, tmp_path)
    assert earlier.tolist() == [-1] * 150 + list(range(50)) + [-1] * 50


def test_rows_that_are_equal_are_all_traced_to_the_first(tmp_path: Path) -> None:
    texts = pl.Series(["a b c d e", "f g h i j", "a b c d e", "A, b c d e"])
    assert find_near_duplicates([texts], 1.0, tmp_path).tolist() == [-1, -1, 0, 0]


def test_nothing_has_no_duplicates(tmp_path: Path) -> None:
    assert find_near_duplicates([], 0.8, tmp_path).tolist() == []
