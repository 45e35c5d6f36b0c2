"""From a refused row, by a person's hand, to a source: nothing twice, nothing unseen."""

from pathlib import Path
from typing import Any

import orjson
import pytest

from alignflow.data_validation import quarantine as module
from alignflow.data_validation.origin import ORIGIN_KEY
from alignflow.data_validation.quarantine import Quarantine, read_quarantine, repairable
from alignflow.data_validation.requeue import requeue
from alignflow.data_validation.source_row import SourceRow
from alignflow.errors import DataError

ROW = {"prompt": "What is 2 + 2?", "response": ""}


@pytest.fixture
def quarantine(tmp_path: Path) -> Path:
    path = tmp_path / "quarantine.jsonl"
    with Quarantine(path) as file:
        file.add("a.jsonl", 3, "empty_value", "response: nothing", ROW)
        file.add("a.jsonl", 7, "invalid_json", "not JSON", '{"prompt": "Who?", "response"')
        file.add("b.jsonl", 1, "duplicate_row", "stands earlier", {**ROW, "response": "4"})
    return path


def edit(path: Path, changes: dict[int, Any]) -> None:
    """Put other rows into lines of the quarantine, numbered from 1."""
    entries = [orjson.loads(line) for line in path.read_bytes().splitlines()]
    for number, row in changes.items():
        entries[number - 1]["row"] = row
    path.write_bytes(b"".join(orjson.dumps(entry) + b"\n" for entry in entries))


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


def test_only_rows_that_were_repaired_are_fed_back(quarantine: Path, tmp_path: Path) -> None:
    repaired = {**ROW, "response": "4"}
    edit(quarantine, {1: repaired, 2: '{"prompt": "Who?", "response": "Nobody."}'})
    report = requeue(quarantine, "sft", tmp_path / "repaired.jsonl")
    assert (report.num_added, report.num_untouched, report.refused) == (2, 1, [])
    origin = {"file": "a.jsonl", "line": 3, "reason": "empty_value"}
    first, second = rows_of(tmp_path / "repaired.jsonl")
    assert first == {**repaired, ORIGIN_KEY: origin}
    assert second["response"] == "Nobody."


def test_another_run_adds_nothing_twice_and_takes_what_was_changed_since(
    quarantine: Path, tmp_path: Path
) -> None:
    output = tmp_path / "repaired.jsonl"
    edit(quarantine, {1: {**ROW, "response": "4"}})
    requeue(quarantine, "sft", output)
    before = output.read_bytes()
    again = requeue(quarantine, "sft", output)
    assert (again.num_added, again.num_there) == (0, 1)
    assert output.read_bytes() == before

    edit(quarantine, {1: {**ROW, "response": "It is 4."}, 2: {"prompt": "Who?", "response": "I."}})
    later = requeue(quarantine, "sft", output)
    assert (later.num_added, later.num_there) == (2, 0)
    assert [row["response"] for row in rows_of(output)] == ["It is 4.", "I."]


def test_what_is_still_wrong_is_told_by_line(quarantine: Path, tmp_path: Path) -> None:
    edit(quarantine, {1: {**ROW, "response": "\x00"}, 2: '{"prompt": "Who?"'})
    report = requeue(quarantine, "sft", tmp_path / "repaired.jsonl")
    assert [(row.line, row.reason) for row in report.refused] == [
        (1, "control_character"),
        (2, "invalid_json"),
    ]
    assert not (tmp_path / "repaired.jsonl").exists()


def test_rows_are_kept_whole_up_to_a_stated_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_ROW_BYTES", 100)
    path = tmp_path / "quarantine.jsonl"
    with Quarantine(path) as file:
        file.add("a.jsonl", 1, "too_long", "", {"text": "x" * (100 - len('{"text":""}'))})
        file.add("a.jsonl", 2, "too_long", "", {"text": "é" * 90})
    whole, cut = read_quarantine(path)
    assert not whole.is_cut
    assert cut.is_cut
    assert isinstance(cut.row, str)
    assert len(cut.row.encode()) in (99, 100)
    assert not whole.is_touched
    assert not cut.is_touched


def test_a_row_without_an_object_is_kept_as_its_text() -> None:
    assert repairable(SourceRow(1, b'{"a": 1}', {"a": 1})) == {"a": 1}
    assert repairable(SourceRow(1, b"\xff{")) == "\ufffd{"
    assert repairable(SourceRow(1, b'{"a": "\\ud800"}', {"\ud800": True})) == '{"a": "\\ud800"}'


def test_files_that_are_something_else_are_refused(quarantine: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="can't be read"):
        requeue(tmp_path / "none.jsonl", "sft", tmp_path / "out.jsonl")
    edit(quarantine, {1: {**ROW, "response": "4"}})
    (tmp_path / "own.jsonl").write_text('{"prompt": "Who?", "response": "I."}\n')
    with pytest.raises(DataError, match="a row that wasn't requeued"):
        requeue(quarantine, "sft", tmp_path / "own.jsonl")
    quarantine.write_text('{"file": "a"}\n')
    with pytest.raises(DataError, match="line 1 is no line of a quarantine"):
        requeue(quarantine, "sft", tmp_path / "out.jsonl")
