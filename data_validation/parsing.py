"""One JSON object from one line: RFC 8259, with what most parsers wave through refused."""

import json
import re
from collections.abc import Sequence
from itertools import chain
from types import NoneType
from typing import Any, NoReturn, cast

import numpy as np
import orjson

from alignflow.data_validation.reasons import RowRefused

LONE_SURROGATE = "\ud800"
"""Key that marks an object in which an unpaired surrogate was replaced by U+FFFD.

No object can hold it otherwise: it is itself an unpaired surrogate.
"""

_KEY_ENDS = re.compile(rb'"[ \t\r\n]*:')
_STRING_OR_BRACKET = re.compile(rb'"(?:[^"\\]|\\.)*"?|[\[\]{}]', re.DOTALL)
_WHITE_SPACE = np.frombuffer(b" \t\r\n", dtype=np.uint8)
_SURROGATE = re.compile("[\ud800-\udfff]")
_FLAT_TYPES = {str, int, float, bool, NoneType}
# A longer integer is beyond the largest double, and int() refuses 4301 digits.
_MAX_INT_DIGITS = 308


def parse_object(text: bytes, max_depth: int) -> dict[str, Any]:
    """Return the object that a line holds.

    Raises:
        RowRefused: `invalid_utf8`, `invalid_json`, `too_deep`, `duplicate_key`, `not_an_object` or
            `non_finite_number`.
    """
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        _check_depth(text, max_depth)
        value = _parse_slowly(text)
    else:
        is_flat = isinstance(value, dict) and {*map(type, value.values())} == {str}
        if not is_flat:
            _check_depth(text, max_depth)
        # Every key ends in a quote and a colon; so does some text. Only a surplus needs a look.
        num_keys = len(value) if is_flat else _count_keys(value)
        if len(_KEY_ENDS.findall(text)) > num_keys:
            value = _parse_slowly(text)
    if not isinstance(value, dict):
        raise RowRefused("not_an_object")
    return cast("dict[str, Any]", value)


def parse_flat_objects(texts: Sequence[bytes]) -> list[dict[str, Any]] | None:
    """Return the objects that some texts hold, if all are sound and hold no list and no object.

    None tells nothing of any one of them: `parse_object` does, and returns the same where this
    returns something.
    """
    # No string can reach over the LFs. So where each text begins and ends as an object, and no
    # value has brackets of its own, an object ends with each text.
    if not all(text.startswith(b"{") and text.endswith((b"}", b"}\r")) for text in texts):
        return None
    return _parse_array(b"[%b]" % b",\n".join(texts), len(texts))


def parse_flat_lines(text: bytes) -> list[dict[str, Any]] | None:
    """Return what `parse_flat_objects` does of the lines of a text, which aren't taken apart."""
    if parse_flat_objects([text.partition(b"\n")[0]]) is None:
        return None  # what the first line is, many will be: all together are not worth a try
    characters = np.frombuffer(b"\n%b\n" % text, dtype=np.uint8)
    ends = np.flatnonzero(characters == ord("\n"))
    before = ends[1:] - 1
    before = before - (characters[before] == ord("\r"))
    is_enclosed = (characters[ends[:-1] + 1] == ord("{")).all()
    if not is_enclosed or not (characters[before] == ord("}")).all():
        return None
    return _parse_array(b"[%b]" % text.replace(b"\n", b",\n"), len(ends) - 1)


def _parse_array(text: bytes, number: int) -> list[dict[str, Any]] | None:
    """Return the items of an array, if they are so many flat objects in which no key is twice."""
    try:
        values = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    if len(values) != number or not {*map(type, values)} <= {dict}:
        return None
    if not {*map(type, chain.from_iterable(map(dict.values, values)))} <= _FLAT_TYPES:
        return None
    # A key that stands twice has two ends.
    return values if _num_key_ends(text) == sum(map(len, values)) else None


def _num_key_ends(text: bytes) -> int:
    """Return how many quotes have a colon behind them, with or without white space between."""
    characters = np.frombuffer(text, dtype=np.uint8)
    before = np.flatnonzero(characters == ord(":")) - 1
    num_ends = 0
    while len(before):
        last = characters[before]
        num_ends += int(np.count_nonzero(last == ord('"')))
        before = before[np.isin(last, _WHITE_SPACE)] - 1
    return num_ends


def _check_depth(text: bytes, max_depth: int) -> None:
    may_be_deep = text.count(b"[") + text.count(b"{") > max_depth
    if may_be_deep and _depth(text) > max_depth:
        raise RowRefused("too_deep")


def _depth(text: bytes) -> int:
    """Return how deep brackets nest outside of strings."""
    depth = deepest = 0
    for match in _STRING_OR_BRACKET.finditer(text):
        first = match[0][:1]
        if first in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        elif first in b"]}":
            depth -= 1
    return deepest


def _count_keys(value: object) -> int:
    if isinstance(value, dict):
        return len(value) + sum(map(_count_keys, value.values()))
    if isinstance(value, list):
        return sum(map(_count_keys, value))
    return 0


def _parse_slowly(text: bytes) -> object:
    """Parse with the standard library, which tells duplicate keys and surrogates apart."""
    try:
        decoded = text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RowRefused("invalid_utf8", f"byte {error.start + 1}") from None
    try:
        value = json.loads(
            decoded,
            object_pairs_hook=_object,
            parse_constant=_constant,
            parse_float=_number,
            parse_int=_integer,
        )
    except json.JSONDecodeError as error:
        raise RowRefused("invalid_json", f"column {error.colno}") from None
    replaced, num_surrogates = _replace_surrogates(value)
    if num_surrogates and isinstance(replaced, dict):
        replaced[LONE_SURROGATE] = True
    return replaced


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise RowRefused("duplicate_key", _SURROGATE.sub("\ufffd", twice))
    return value


def _constant(text: str) -> NoReturn:
    raise RowRefused("invalid_json", text)


def _number(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise RowRefused("non_finite_number", text[:20])
    return value


def _integer(text: str) -> float:
    return int(text) if len(text) <= _MAX_INT_DIGITS else _number(text)


def _replace_surrogates(value: Any) -> tuple[Any, int]:
    """Return the value with unpaired surrogates replaced, and how many strings had one."""
    if isinstance(value, str):
        replaced = _SURROGATE.sub("\ufffd", value)
        return replaced, int(replaced != value)
    if isinstance(value, list):
        parts = [_replace_surrogates(item) for item in value]
        return [part for part, _ in parts], sum(count for _, count in parts)
    if isinstance(value, dict):
        keys = [_replace_surrogates(key) for key in value]
        values = [_replace_surrogates(item) for item in value.values()]
        merged = {key: item for (key, _), (item, _) in zip(keys, values, strict=True)}
        return merged, sum(count for _, count in [*keys, *values])
    return value, 0
