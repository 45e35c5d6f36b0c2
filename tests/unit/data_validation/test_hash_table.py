"""The table beside Python's own dict."""

import random

import numpy as np

from alignflow.data_validation.hash_table import Hashes, HashTable, Values


def hashes(*values: int) -> Hashes:
    return np.array(values, dtype=np.uint64)


def numbers(*values: int) -> Values:
    return np.array(values, dtype=np.uint32)


def test_it_holds_what_a_dict_would_hold() -> None:
    draw = random.Random(0)
    table, expected = HashTable(has_values=True), dict[int, int]()
    for _ in range(40):
        # Up to two thirds of the slots are taken, so that many hashes want the same one.
        keys = [draw.getrandbits(64) for _ in range(500)]
        keys += draw.choices([*expected] or keys, k=50)
        values = [draw.getrandbits(32) for _ in keys]
        for key, value in zip(keys, values, strict=True):
            expected.setdefault(key, value)
        table.add(hashes(*keys), numbers(*values))
    assert len(table) == len(expected)
    known = hashes(*expected)
    assert table.contains(known).all()
    assert table.values(known).tolist() == list(expected.values())
    assert not table.contains(known + np.uint64(1 << 63)).any()


def test_of_equal_hashes_the_first_counts() -> None:
    table = HashTable(has_values=True)
    table.add(hashes(7, 8, 7), numbers(1, 2, 3))
    table.add(hashes(8, 9), numbers(4, 5))
    assert table.values(hashes(7, 8, 9, 10)).tolist() == [1, 2, 5, 0]


def test_zero_is_no_hash() -> None:
    table = HashTable()
    table.add(hashes(0, 5))
    assert len(table) == 1
    assert table.contains(hashes(0, 5)).tolist() == [False, True]
