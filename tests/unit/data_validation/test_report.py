"""The report on one file: its decision, its JSON and its text."""

from collections.abc import Callable
from typing import Any

import pytest

from alignflow.data_validation.check import check_file
from alignflow.data_validation.report import FileReport, printable
from alignflow.data_validation.streams import NamedFile
from alignflow.errors import DataError

CheckRows = Callable[..., FileReport]
MakeFile = Callable[[str, bytes], NamedFile]

GOOD: dict[str, Any] = {"prompt": "Q", "chosen": "A", "rejected": "B"}
FLAGGED = GOOD | {"prompt": "R", "chosen": "None"}
BAD = GOOD | {"chosen": "\x1b[31m\u202e[b]x[/b]"}


@pytest.mark.parametrize(
    ("rows", "decision"),
    [([GOOD], "accept"), ([GOOD, b""], "accept"), ([GOOD, BAD], "partial"), ([BAD], "reject")],
)
def test_the_decision_on_a_file_follows_from_its_rows(
    check_rows: CheckRows, rows: list[Any], decision: str
) -> None:
    assert check_rows(rows).decision == decision


def test_json_lists_every_row_that_is_not_plainly_accepted(check_rows: CheckRows) -> None:
    report = check_rows([GOOD, b"", FLAGGED, BAD], name="pairs.jsonl")
    assert report.to_json() == {
        "file": "pairs.jsonl",
        "decision": "partial",
        "reason": None,
        "rows": [
            {"line": 2, "decision": "skip", "reason": None, "flags": []},
            {"line": 3, "decision": "accept", "reason": None, "flags": ["suspicious_output"]},
            {"line": 4, "decision": "reject", "reason": "control_character", "flags": []},
        ],
        "counts": {"accept": 2, "reject": 1, "skip": 1},
    }


def test_nothing_of_a_refused_file_is_reported_as_used(make_file: MakeFile) -> None:
    file = make_file("page.jsonl", b"<html>\n")
    report = check_file(file.path, "preference", name="page.jsonl")
    assert report.to_json() == {
        "file": "page.jsonl",
        "decision": "reject",
        "reason": "not_jsonl",
        "rows": [],
        "counts": {"accept": 0, "reject": 0, "skip": 0},
    }
    assert "page.jsonl: no line parses as JSON; look at what was downloaded." in report.to_text()


@pytest.mark.parametrize("text", [b"a?,b,c\n1,2,3\n", b"prompt;chosen;rejected\na;b;c\n"])
def test_a_header_without_the_columns_refuses_the_file(make_file: MakeFile, text: bytes) -> None:
    report = check_file(make_file("a.csv", text).path, "preference")
    assert (report.decision, report.reason) == ("reject", "missing_key")


def test_a_file_that_is_not_there_is_no_verdict(make_file: MakeFile) -> None:
    path = make_file("a.jsonl", b"").path.with_name("b.jsonl")
    with pytest.raises(DataError, match="no such file"):
        check_file(path, "sft")


def test_text_names_reasons_with_examples_that_do_nothing_to_a_terminal(
    check_rows: CheckRows,
) -> None:
    text = check_rows([GOOD, FLAGGED, BAD], name="pairs.jsonl").to_text()
    assert "2 rows accepted, 1 refused, 0 blank" in text
    assert "1  control_character  a control character other than tab" in text
    assert "1  suspicious_output" in text
    assert "line 3, control_character (chosen: a control character" in text
    assert printable(text.replace("\n", "")) == text.replace("\n", "")


def test_what_a_terminal_would_act_on_is_escaped() -> None:
    assert printable("a\x1b[31m\u202e\u00e9\n") == "a\\x1b[31m\\u202e\u00e9\\n"
