"""Held-out prompts that some set trains on, counted by hand."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from alignflow.data_validation.canonical import SCHEMAS
from alignflow.data_validation.leaks import count_leaks


def write(folder: Path, kind: str, **prompts: Sequence[str]) -> Path:
    """Write a set of rows with these first user turns, by split."""
    folder.mkdir()
    (folder / "card.json").write_text("{}")
    for split, texts in prompts.items():
        turns = [
            [{"role": "system", "content": "S"}, {"role": "user", "content": t}] for t in texts
        ]
        column = "messages" if kind == "sft" else "prompt"
        table = pa.Table.from_pylist([{column: turn} for turn in turns], schema=SCHEMAS[kind])
        (folder / split).mkdir()
        pq.write_table(table, folder / split / "part-00000.parquet")
    return folder


def test_leaks_are_counted_within_and_between_sets(tmp_path: Path) -> None:
    found = count_leaks(
        {
            "demonstrations": write(
                tmp_path / "one", "sft", train=["Who are you?", "Why?"], held_out=["When?"]
            ),
            "preferences": write(
                tmp_path / "two",
                "preference",
                train=["When", "How?"],
                held_out=["who are YOU", "Why?", "Where?", "how"],
            ),
        }
    )
    assert [(leak.held_out_of, leak.train_of, leak.num_leaked) for leak in found] == [
        ("demonstrations", "demonstrations", 0),
        ("demonstrations", "preferences", 1),
        ("preferences", "demonstrations", 2),
        ("preferences", "preferences", 1),
    ]
    assert [leak.num_held_out for leak in found] == [1, 1, 4, 4]
    assert found[2].share == 0.5


def test_nothing_held_out_leaks_nothing(tmp_path: Path) -> None:
    (leak,) = count_leaks({"set": write(tmp_path / "set", "sft", train=["Why?"])})
    assert (leak.num_leaked, leak.share) == (0, 0)
