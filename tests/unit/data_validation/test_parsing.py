"""JSON by RFC 8259, and the reasons for what isn't."""

import pytest

from alignflow.data_validation.parsing import LONE_SURROGATE, parse_object
from alignflow.data_validation.reasons import RowRefused


def refusal(text: bytes) -> str:
    with pytest.raises(RowRefused) as caught:
        parse_object(text, max_depth=64)
    return caught.value.reason


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b'  {"a": 1}\t\r', {"a": 1}),
        (b'{"a": "\\ud83d\\ude00 \\/"}', {"a": "😀 /"}),
        ('{"a": "x\u2028y"}'.encode(), {"a": "x\u2028y"}),
        # Text that looks like keys makes the parser look twice, and find nothing wrong.
        (b'{"a": "he said \\"a\\": 1, \\"a\\" : 2"}', {"a": 'he said "a": 1, "a" : 2'}),
        (b'{"a": {"a": 1}, "b": [{"a": 1}, {"a": 2}]}', {"a": {"a": 1}, "b": [{"a": 1}, {"a": 2}]}),
        (b'{"a": ' + b"1" * 40 + b"}", {"a": float("1" * 40)}),
        (b'{"a": "' + b"[" * 100 + b'"}', {"a": "[" * 100}),
    ],
)
def test_an_object_is_read(text: bytes, value: object) -> None:
    assert parse_object(text, max_depth=64) == value


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b'{"a": "\xff"}', "invalid_utf8"),
        (b'{"a": "\xed\xa0\xbd\xed\xb8\x80"}', "invalid_utf8"),
        (b'{"a": 1', "invalid_json"),
        (b'{"a": 1,}', "invalid_json"),
        (b"{'a': 1}", "invalid_json"),
        (b'{"a": 1} {"a": 1}', "invalid_json"),
        (b'{"a": "\x01"}', "invalid_json"),
        (b'{"a": "\\x41"}', "invalid_json"),
        (b'{"a": NaN}', "invalid_json"),
        (b'{"a": -Infinity}', "invalid_json"),
        (b'\xef\xbb\xbf{"a": 1}', "invalid_json"),
        (b'{"a": ' + b"[" * 20_000 + b"]" * 20_000 + b"}", "too_deep"),
        (b"[" * 20_000, "too_deep"),
        (b'{"a": 1, "a": 2}', "duplicate_key"),
        (b'{"a": 1, "a"\t: 2}', "duplicate_key"),
        (b'{"b": [{"a": 1, "\\u0061": 2}]}', "duplicate_key"),
        (b"[1]", "not_an_object"),
        (b"null", "not_an_object"),
        (b'{"a": 1e999}', "non_finite_number"),
        (b'{"a": -1e999}', "non_finite_number"),
        (b'{"a": ' + b"9" * 5000 + b"}", "non_finite_number"),
    ],
)
def test_what_is_no_object_has_its_reason(text: bytes, reason: str) -> None:
    assert refusal(text) == reason


def test_nesting_is_counted_outside_of_strings() -> None:
    at_limit = b'{"a": ' + b"[" * 63 + b"]" * 63 + b"}"
    assert parse_object(at_limit, max_depth=64)
    with pytest.raises(RowRefused, match="too_deep"):
        parse_object(at_limit, max_depth=63)


@pytest.mark.parametrize("text", [b'{"a": "x\\ud83dy"}', b'{"b": ["\\udc00"]}', b'{"\\ud800": 1}'])
def test_an_unpaired_surrogate_is_replaced_and_marked(text: bytes) -> None:
    value = parse_object(text, max_depth=64)
    assert value.pop(LONE_SURROGATE) is True
    assert "\ufffd" in str(value)
    str(value).encode()


def test_a_paired_surrogate_is_not_marked_where_the_slow_parser_reads_it() -> None:
    assert parse_object(b'{"a": "\\ud83d\\ude00\\": "}', max_depth=64) == {"a": '😀": '}
