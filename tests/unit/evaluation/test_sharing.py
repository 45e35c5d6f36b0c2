"""Items are judged once, however often the job is lost, and by whichever rank."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from alignflow.evaluation.progress import Progress
from alignflow.evaluation.sharing import Passes, SharedWork
from alignflow.jobs.run_folder import RunFolder
from alignflow.training.config import ParallelConfig
from alignflow.training.megatron.setup import initialize

ITEMS = ["a", "bb", "ccc", "dddd"]


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    initialize(ParallelConfig(), seed=0)
    folder = RunFolder(tmp_path / "job")
    folder.path.mkdir()
    folder.create()
    return folder


def work(folder: RunFolder) -> SharedWork:
    return SharedWork(folder.path / "answers", Progress(folder, len(ITEMS)))


def lengths(items: list[str]) -> Passes:
    """Two items a pass."""
    for start in range(0, len(items), 2):
        yield [len(item) for item in items[start : start + 2]], 10


def progress(folder: RunFolder) -> list[tuple[int, int]]:
    rows = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    return [(row["done"], row["total"]) for row in rows]


def test_answers_come_in_the_order_of_the_items(folder: RunFolder) -> None:
    assert work(folder).collect("part", ITEMS, lengths) == [1, 2, 3, 4]
    assert progress(folder) == [(2, 4), (4, 4)]


def test_the_next_attempt_goes_on_with_what_is_left(folder: RunFolder) -> None:
    def lost(items: list[str]) -> Iterator[tuple[list[int], int]]:
        yield next(lengths(items))  # type: ignore[misc]
        raise ConnectionError("the machine went away")

    with pytest.raises(ConnectionError):
        work(folder).collect("part", ITEMS, lost)
    asked: list[list[str]] = []

    def judge(items: list[str]) -> Passes:
        asked.append(items)
        return lengths(items)

    assert work(folder).collect("part", ITEMS, judge) == [1, 2, 3, 4]
    assert asked == [["ccc", "dddd"]]
    assert progress(folder) == [(2, 4), (2, 4), (4, 4)]


def test_half_a_line_and_other_items_are_not_used(folder: RunFolder) -> None:
    work(folder).collect("part", ["x", "yy"], lengths)
    (file,) = (folder.path / "answers").iterdir()
    with file.open("a") as lines:
        lines.write('{"of": "')
    assert work(folder).collect("part", ITEMS, lengths) == [1, 2, 3, 4]
    assert work(folder).collect("part", ITEMS, lambda items: iter([])) == [1, 2, 3, 4]


def test_what_another_number_of_ranks_found_is_used(folder: RunFolder) -> None:
    whole = work(folder)
    whole.collect("part", ITEMS, lengths)
    (file,) = (folder.path / "answers").iterdir()
    rows = [json.loads(line) for line in file.read_text().splitlines() if line]
    file.unlink()
    shares: dict[int, list[dict[str, Any]]] = {1: rows[1:2], 2: rows[3:]}
    for rank, share in shares.items():
        text = "".join(json.dumps(row) + "\n" for row in share)
        (folder.path / "answers" / f"part-{rank}.jsonl").write_text(text)
    asked: list[str] = []

    def judge(items: list[str]) -> Passes:
        asked.extend(items)
        return lengths(items)

    assert work(folder).collect("part", ITEMS, judge) == [1, 2, 3, 4]
    assert asked == ["a", "ccc"]
