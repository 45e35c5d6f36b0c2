"""Rows and their numbers, out of every format."""

import gzip
import io
import pickle
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from alignflow.data_validation import json_array
from alignflow.data_validation.config import RowLimits
from alignflow.data_validation.readers import read_blocks, read_rows
from alignflow.data_validation.streams import NamedFile
from alignflow.errors import DataError

MakeFile = Callable[[str, bytes], NamedFile]
LIMITS = RowLimits(max_line_bytes=1000)


def outcomes(file: NamedFile) -> list[tuple[int, Any]]:
    """Return number and values, or reason, or None for a blank row."""
    return [
        (row.line, row.refused.reason if row.refused else row.values)
        for row in read_rows(file, LIMITS)
    ]


def refusal(file: NamedFile) -> str | None:
    with pytest.raises(DataError, match=file.name) as caught:
        list(read_rows(file, LIMITS))
    return caught.value.reason


def test_json_lines_are_numbered_by_physical_line(make_file: MakeFile) -> None:
    file = make_file("a.jsonl", b'{"a": 1}\r\n\n  \t\n{"a"}\n{"a": 2}')
    assert outcomes(file) == [
        (1, {"a": 1}),
        (2, None),
        (3, None),
        (4, "invalid_json"),
        (5, {"a": 2}),
    ]


def test_a_cut_last_line_is_told_from_bad_json(make_file: MakeFile) -> None:
    assert outcomes(make_file("a.jsonl", b'{"a": 1}\n{"a": ')) == [
        (1, {"a": 1}),
        (2, "truncated_last_line"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.jsonl", b"\n \n", "empty_file"),
        ("a.jsonl", b"\xef\xbb\xbf", "empty_file"),
        ("a.json", b"[]", "empty_file"),
        ("a.csv", b"prompt,chosen\n", "empty_file"),
        ("a.jsonl", b"<html>\n<body>\n", "not_jsonl"),
        ("a.jsonl", "é\nü\n".encode("latin-1"), "not_utf8"),
        ("a.json", b"[1", "not_jsonl"),
        ("a.csv", b"a,a\n1,2\n", "duplicate_key"),
        ("a.csv", b'a\n"' + b"x\n" * 600, "line_too_long"),
        ("a.json", b"[" + b"1" * 1001 + b"]", "line_too_long"),
        ("a.parquet", b"PAR1 and nothing else", "corrupt_archive"),
        ("a.parquet", b"no parquet", "not_parquet"),
        ("a.parquet.gz", gzip.compress(b"no parquet", mtime=0), "not_parquet"),
        ("a.parquet.gz", gzip.compress(b"PAR1", mtime=0), "corrupt_archive"),
        ("a.txt", b"text", None),
    ],
)
def test_a_file_is_refused_as_a_whole(
    make_file: MakeFile, name: str, content: bytes, reason: str | None
) -> None:
    assert refusal(make_file(name, content)) == reason


def test_json_with_lines_in_it_is_read_as_lines(make_file: MakeFile) -> None:
    assert outcomes(make_file("a.json", b'{"a": 1}\n{"a": 2}\n')) == [(1, {"a": 1}), (2, {"a": 2})]


@pytest.mark.parametrize("block_bytes", [1, 2, 7, 1000])
def test_items_of_an_array_are_found_across_blocks(
    make_file: MakeFile, monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    monkeypatch.setattr(json_array, "BLOCK_BYTES", block_bytes)
    text = '\ufeff [\n {"a": "],{\\" \\\\"}, {"b": [1, {"c": 2}]}\n,{"d":"é"} ]\n'
    assert outcomes(make_file("a.json", text.encode())) == [
        (1, {"a": '],{" \\'}),
        (2, {"b": [1, {"c": 2}]}),
        (3, {"d": "é"}),
    ]


@pytest.mark.parametrize(
    ("text", "last"),
    [
        (b'[{"a": 1}, {"a": 2', (2, "truncated_last_line")),
        (b'[{"a": 1},', (2, "truncated_last_line")),
        (b'[{"a": 1}, {"a": 2}', (2, "truncated_last_line")),
        (b'[{"a": 1}] x', (2, "invalid_json")),
        (b'[{"a": 1}, , {"a": 2}]', (2, "invalid_json")),
        (b'[{"a": 1}, 7]', (2, "not_an_object")),
    ],
)
def test_a_broken_array_keeps_its_good_items(
    make_file: MakeFile, text: bytes, last: tuple[int, str]
) -> None:
    found = outcomes(make_file("a.json", text))
    assert found[0] == (1, {"a": 1})
    assert found[1] == last


def test_csv_records_are_numbered_after_the_header(make_file: MakeFile) -> None:
    text = '\ufeffprompt,chosen\r\n"a\nb","say ""x"""\r\nfew\r\n\r\né,1,2\r\nlast,x'
    assert outcomes(make_file("a.csv", text.encode())) == [
        (1, {"prompt": "a\nb", "chosen": 'say "x"'}),
        (2, "column_count"),
        (3, None),
        (4, "column_count"),
        (5, {"prompt": "last", "chosen": "x"}),
    ]


def test_an_open_quote_swallows_what_follows(make_file: MakeFile) -> None:
    assert outcomes(make_file("a.csv", b'a,b\n1,2\n3,"x\n4,5\n')) == [
        (1, {"a": "1", "b": "2"}),
        (2, "unclosed_quote"),
    ]


def test_csv_scores_are_numbers_and_empty_options_are_absent(make_file: MakeFile) -> None:
    text = b"id,prompt,score_chosen\n,,1.5\n7,x,high\n8,\xff,1\n9,x,inf\n"
    assert outcomes(make_file("a.csv", text)) == [
        (1, {"prompt": "", "score_chosen": 1.5}),
        (2, {"id": "7", "prompt": "x", "score_chosen": "high"}),
        (3, "invalid_utf8"),
        (4, "non_finite_number"),
    ]


def test_a_csv_row_keeps_its_lines_and_the_order_of_its_columns(make_file: MakeFile) -> None:
    file = make_file("a.csv", b'id,prompt,score_chosen\n7,"a\nb",1\n8,c,2')
    first, last = read_rows(file, LIMITS)
    assert (first.original, last.original) == (b'7,"a\nb",1\n', b"8,c,2\n")
    assert list(first.values or {}) == ["id", "prompt", "score_chosen"]


def test_parsed_rows_are_sent_without_their_originals(make_file: MakeFile) -> None:
    (block,) = read_blocks(make_file("a.csv", b"a,b\n1,2\n3\n\n4,5\n"), LIMITS)
    sent = pickle.loads(pickle.dumps(block))
    assert sent.first_line == block.first_line == 1
    for row, same in zip(block.rows(), sent.rows(), strict=True):
        assert row.original is not None
        assert same.original is None
        assert (same.line, same.values, same.is_blank) == (row.line, row.values, row.is_blank)
        assert str(same.refused) == str(row.refused)


def test_csv_labels_are_true_or_false(make_file: MakeFile) -> None:
    assert outcomes(make_file("a.csv", b"label\ntrue\n False \nyes\n")) == [
        (1, {"label": True}),
        (2, {"label": False}),
        (3, {"label": "yes"}),
    ]


def test_parquet_rows_come_with_nested_values(make_file: MakeFile) -> None:
    table = pa.table(
        {
            "id": pa.array(["1", None, "3"]),
            "messages": [[{"role": "user", "content": "a"}], None, []],
            "score_chosen": pa.array([1.0, None, float("nan")]),
        }
    )
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    assert outcomes(make_file("a.parquet", buffer.getvalue())) == [
        (1, {"id": "1", "messages": [{"role": "user", "content": "a"}], "score_chosen": 1.0}),
        (2, {"id": None, "messages": None, "score_chosen": None}),
        (3, "non_finite_number"),
    ]


def test_a_row_shows_the_start_of_what_it_was(make_file: MakeFile) -> None:
    (row,) = read_rows(make_file("a.jsonl", '{"a": "ééé"}'.encode()), LIMITS)
    assert row.excerpt(9) == '{"a": "éé'


@pytest.mark.parametrize(
    ("ending", "compress"),
    [("gz", gzip.compress), ("zst", zstandard.ZstdCompressor().compress)],
)
def test_parquet_may_be_compressed_once_more(
    make_file: MakeFile, ending: str, compress: Callable[[bytes], bytes]
) -> None:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([{"a": 1}, {"a": 2}]), buffer)
    file = make_file(f"a.parquet.{ending}", compress(buffer.getvalue()))
    assert outcomes(file) == [(1, {"a": 1}), (2, {"a": 2})]
