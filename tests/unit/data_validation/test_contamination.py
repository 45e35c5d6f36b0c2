"""Benchmark items found by windows, beside a plain search."""

import random

import pytest

from alignflow.data_validation.contamination import BenchmarkTexts
from alignflow.data_validation.drafts import Draft, Turn
from alignflow.data_validation.records import Records
from alignflow.data_validation.text import normalised

ITEMS = (
    "a b c d e f g",  # shorter than any window
    "is it so or is it no",  # 15 characters, as many as the small windows need
    "what did they say to you on that day",
    "\u00bfqu\u00e9 dijo \u00e9l a la ni\u00f1a aquel d\u00eda?",
    "is this one as long as two windows take?",
)


def records_of(*texts: str) -> Records:
    return Records.of(Draft(None, {"messages": [Turn("user", text)]}) for text in texts)


@pytest.mark.parametrize("item", ITEMS)
def test_an_item_is_found_wherever_it_stands(item: str) -> None:
    benchmark = BenchmarkTexts(ITEMS)
    for offset in range(20):
        before, after = "x" * offset, "y" * (offset % 7)
        found = benchmark.find(records_of("nothing", f"{before} {item.upper()} {after}", before))
        assert found == {1}


def test_a_cut_item_is_not_found() -> None:
    cut = [item[:-3] for item in ITEMS]
    assert BenchmarkTexts(ITEMS).find(records_of(*cut, "", *(item[3:] for item in ITEMS))) == set()


def test_texts_are_searched_apart() -> None:
    item = ITEMS[2]
    assert BenchmarkTexts(ITEMS).find(records_of(item[:18], item[18:])) == set()
    assert BenchmarkTexts(ITEMS).find(Records()) == set()


def test_windows_find_what_a_search_finds() -> None:
    draw = random.Random(2)
    letters = "ab \u00e9"

    def made_up(length: int) -> str:
        return "".join(draw.choices(letters, k=length))

    # Of four letters alone, so that windows and items are alike and many overlap.
    items = [f"{made_up(draw.randint(12, 40))} a b c d e f" for _ in range(40)]
    texts = [made_up(60) + draw.choice([*items, ""])[:40] + made_up(9) for _ in range(500)]
    texts += [f"{made_up(draw.randrange(30))}{item}{made_up(3)}" for item in items]
    keys = [normalised(item) for item in items]
    expected = {
        number for number, text in enumerate(texts) if any(key in normalised(text) for key in keys)
    }
    assert len(expected) >= len(items)
    assert BenchmarkTexts(items).find(records_of(*texts)) == expected
