"""What a comparison with earlier rows, other splits and benchmarks finds."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from alignflow.data_validation.benchmarks import benchmark_texts
from alignflow.data_validation.comparison import RowKeys, _texts_of_any, _texts_of_plain_pairs
from alignflow.data_validation.contamination import BenchmarkTexts
from alignflow.data_validation.drafts import Draft, Turn
from alignflow.data_validation.records import Records
from alignflow.data_validation.report import FileReport
from alignflow.data_validation.streams import NamedFile
from alignflow.data_validation.text import hash_of, normalised, prompt_key
from alignflow.errors import DataError
from alignflow.sources import fetch_file

CheckRows = Callable[..., FileReport]
MakeFile = Callable[[str, bytes], NamedFile]


def pair(prompt: str, chosen: str = "A", rejected: str = "B", **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}


def rated(reply: str, **attributes: int) -> dict[str, Any]:
    messages = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": reply}]
    return {"messages": messages, "attributes": attributes}


def summary(report: FileReport) -> list[tuple[int, str | None, tuple[str, ...]]]:
    return [(row.line, row.reason, row.flags) for row in report.rows]


def test_repeated_and_contradicted_rows_are_refused(check_rows: CheckRows) -> None:
    report = check_rows(
        [
            pair("Q"),
            pair(" Q\n", " A", "B "),
            pair("Q", "B", "A"),
            {"chosen": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}],
             "rejected": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "B"}]},
            pair("q?", "A", "C"),
            pair("R"),
        ]
    )  # fmt: skip
    assert summary(report) == [
        (2, "duplicate_row", ()),
        (3, "conflicting_preference", ()),
        (4, "duplicate_row", ()),
        (5, None, ("duplicate_prompt",)),
    ]


def test_a_refused_row_is_no_earlier_row(check_rows: CheckRows) -> None:
    mail = pair("Write to a@example.com", id="1")
    report = check_rows([mail, mail, pair("R", id="1")])
    assert summary(report) == [(1, "pii", ()), (2, "pii", ())]


def test_a_repeated_row_is_named_before_what_policy_says(check_rows: CheckRows) -> None:
    report = check_rows([pair("Q", id="1"), pair("Write to a@example.com", id="1")])
    assert summary(report) == [(2, "duplicate_id", ())]


def test_rows_of_other_chunks_are_remembered(check_rows: CheckRows) -> None:
    rows = [pair(f"Q{number}") for number in range(5000)]
    assert summary(check_rows([*rows, rows[0]])) == [(5001, "duplicate_row", ())]


def test_one_conversation_has_one_rating(check_rows: CheckRows) -> None:
    rows = [rated("A", quality=1), rated("A", quality=1), rated("A", quality=2), rated("B")]
    report = check_rows(rows, "steerlm")
    assert [row.reason for row in report.rows] == [
        "duplicate_row",
        "conflicting_attributes",
        "empty_value",
    ]


def test_one_response_has_one_label(check_rows: CheckRows) -> None:
    rows = [
        {"prompt": "Q", "response": response, "label": label}
        for response, label in (("A", True), (" A", True), ("A", False), ("B", False))
    ]
    report = check_rows(rows, "unpaired")
    assert summary(report) == [
        (2, "duplicate_row", ()),
        (3, "conflicting_label", ()),
        (4, None, ("duplicate_prompt",)),
    ]


def test_a_prompt_of_the_training_side_leaks(check_rows: CheckRows, make_file: MakeFile) -> None:
    train = make_file("train.jsonl", orjson.dumps(pair("What is 1 + 1?")))
    report = check_rows(
        [pair("what is 1+1", "2", "3"), pair("What is 1 + 2?", "3", "4")], against=train
    )
    assert summary(report) == [(1, "split_leak", ())]


@pytest.mark.parametrize(
    ("text", "is_found"),
    [
        ("What did SOS originally stand for?", True),
        ("Q: what did S.O.S. originally stand for??\nA:", True),
        ("What did S O S stand for", False),
        ("Who are you?", True),
        ("who are YOU", True),
        ("And who are you, may I ask?", False),
        ("...", False),
    ],
)
def test_benchmark_items_are_found(text: str, is_found: bool) -> None:
    benchmark = BenchmarkTexts(["What did SOS originally stand for?", "Who are you?", "!"])
    prompt = [Turn("user", "x"), Turn("assistant", "y"), Turn("user", text)]
    drafts = [
        Draft(None, {"messages": [Turn("user", "x"), Turn("assistant", "y")]}),
        Draft(None, {"prompt": prompt, "chosen": [Turn("assistant", "z")]}),
        Draft(None, {"messages": [Turn("user", "x"), Turn("assistant", text)]}),
    ]
    assert benchmark.find(Records.of(drafts)) == ({1, 2} if is_found else set())


def test_contaminated_rows_are_refused(check_rows: CheckRows) -> None:
    report = check_rows([pair("Who are you?"), pair("Who is it?")], decontaminate=["Who are you"])
    assert summary(report) == [(1, "eval_contamination", ())]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("TruthfulQA.csv", '\ufeffType,Question,Best Answer\nx,"Is it so?",No\n'),
        ("mc_task.json", '[{"question": "Is it so?", "mc1_targets": {"No": 1}}]'),
        ("toxigen.json", '[{"id": 0, "text": "Is it so?"}\n]'),
        ("items.jsonl", '\n{"prompt": "Is it so?"}'),
    ],
)
def test_items_are_read_from_benchmark_files(
    make_file: MakeFile, tmp_path: Path, name: str, content: str
) -> None:
    file = fetch_file(str(make_file(name, content.encode()).path), tmp_path)
    assert list(benchmark_texts(file)) == ["Is it so?"]


def test_a_file_without_items_is_no_benchmark(make_file: MakeFile, tmp_path: Path) -> None:
    file = fetch_file(str(make_file("a.jsonl", b'{"name": "x"}').path), tmp_path)
    with pytest.raises(DataError, match="row 1 is no benchmark item"):
        list(benchmark_texts(file))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("What's 1 + 1?", "whats11"),
        ("STRASSE stra\u00dfe", "strassestrasse"),
        ("\uff21\ufb01 _x_", "afix"),
        ("\u65e5\u672c\u3001\u8a9e\u3002", "\u65e5\u672c\u8a9e"),
        ("?!", ""),
    ],
)
def test_the_normal_form_is_letters_and_digits(text: str, expected: str) -> None:
    assert normalised(text).decode() == expected


def test_prompts_of_symbols_alone_stay_apart() -> None:
    assert prompt_key(" ?! ") == "?!"


def test_hashes_tell_where_one_text_ends() -> None:
    assert hash_of("ab", "c") != hash_of("a", "bc")
    assert hash_of("ab") == hash_of("ab")


def test_plain_pairs_have_the_keys_of_pairs() -> None:
    draw = random.Random(5)
    texts = ("", "a", "A.", " a", "a \n", "...", "\x1ca", "b c", "\x00", "\u00e9", "e\u0301 ", None)
    drafts = [
        Draft(
            None,
            {
                "prompt": [Turn("user", draw.choice(texts))],
                "chosen": [Turn("assistant", draw.choice(texts))],
                "rejected": [Turn("assistant", draw.choice(texts))],
            },
        )
        for _ in range(3000)
    ]
    records = Records.of(drafts)
    every = np.arange(len(records))
    compared, judgements = _texts_of_any(records, every)
    keys = RowKeys.of(records)
    is_plain = np.isin(every, records.record_of[records.not_ascii], invert=True)
    assert 500 < is_plain.sum() < 2500
    plain, plain_judgements = _texts_of_plain_pairs(records, every[is_plain])
    assert plain.rows == [compared.rows[index] for index in every[is_plain]]
    assert plain.prompts == [compared.prompts[index] for index in every[is_plain]]
    assert plain_judgements == [judgements[index] for index in every[is_plain]]
    assert keys.judgement.tolist() == judgements
    for hashes, hashed in ((keys.row, compared.rows), (keys.prompt, compared.prompts)):
        assert len(set(hashes.tolist())) == len(set(hashed))
        assert len(set(zip(hashes.tolist(), hashed, strict=True))) == len(set(hashed))
