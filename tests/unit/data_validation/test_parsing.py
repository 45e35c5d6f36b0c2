"""JSON by RFC 8259, and the reasons for what isn't."""

import random
from typing import Any

import pytest

from alignflow.data_validation.parsing import (
    LONE_SURROGATE,
    parse_flat_lines,
    parse_flat_objects,
    parse_object,
)
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


BETWEEN = (b"", b" ", b"\t", b"\r")
TEXTS = (b'"text"', b'"a, \\"b\\": {c}"')
VALUES = (
    *(*TEXTS, b"1", b"-2.5e3", b"1e999", b"null", b"true", b"NaN", b"[]", b"{}", b'{"a": 1}'),
    *(b'"\\ud800"', b'"\xff"', b'"{"', b'"}"', b'"\\":"', b'" : "', b"01"),
)
LINES = (
    *(b"", b" ", b"{", b"}", b"{}", b"[{}", b"{}]", b'{"a":1},{"b":2}', b'{"a": "x}', b'{y"}'),
    *(b'{"a": [{}', b'{"a":[{}, {}]}', b'"a"', b"{},", b",{}", b'{"a": "b', b'c"}', b"\xef{}"),
)


def made_up_line(draw: random.Random) -> bytes:
    """Return an object of a few keys, which may stand twice, or something that only looks so."""
    if draw.random() < 0.05:
        return draw.choice(LINES)
    entries = [
        draw.choice(BETWEEN).join(
            (b"", b'"%c"' % draw.choice(b"abcdef"), b":", draw.choice(TEXTS), b"")
        )
        if draw.random() < 0.9
        else b'"g":' + draw.choice(VALUES)
        for _ in range(draw.randrange(4))
    ]
    return b"{" + b",".join(entries) + draw.choice((b"}", b"}", b"} ", b"}\r"))


def parsed(text: bytes) -> dict[str, Any] | None:
    try:
        return parse_object(text, max_depth=64)
    except RowRefused:
        return None


def test_lines_parsed_together_hold_what_each_holds() -> None:
    draw = random.Random(3)
    num_together = 0
    for _ in range(20_000):
        lines = [made_up_line(draw) for _ in range(draw.choice((1, 2, 3, 5)))]
        together = parse_flat_objects(lines)
        assert parse_flat_lines(b"\n".join(lines)) == together, lines
        if together is not None:
            num_together += 1
            assert together == [parsed(line) for line in lines], lines
    assert num_together > 2000


@pytest.mark.parametrize(
    "lines",
    [
        [b'{"a":1},{"b":2}', b'{"a": [{}', b"{}]}"],
        [b'{"a": "x}', b'{y"}', b'{"a":1},{"b":2}'],
        [b'{"a": 1, "a": 2}'],
        [b'{"a" : 1, "a"\t: 2}'],
        [b'{"a": {"b": 1}}'],
        [b""],
    ],
)
def test_lines_that_only_look_sound_are_parsed_alone(lines: list[bytes]) -> None:
    assert parse_flat_objects(lines) is None
    assert parse_flat_lines(b"\n".join(lines)) is None
