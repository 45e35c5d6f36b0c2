import pytest

from alignflow.reporting.text import (
    format_bytes,
    format_compact,
    format_number,
    format_seconds,
    humanise,
    plural,
    visible,
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain\n\ttext", "plain\n\ttext"),
        ("line\r\nend", "line\nend"),
        ("over\rwrite", "over[U+000D]write"),
        ("\x1b[31mred", "[U+001B][31mred"),
        ("\u202eabc\u2066", "[U+202E]abc[U+2066]"),
        ("a\u2028b\x00", "a[U+2028]b[U+0000]"),
        ("tag\U000e0041", "tag[U+E0041]"),
        ("half \ud800", "half [U+D800]"),
        ("\u0645\u0631\u062d\u0628\u0627", "\u0645\u0631\u062d\u0628\u0627"),
        ("family \U0001f468\u200d\U0001f469", "family \U0001f468\u200d\U0001f469"),
        ("no\u00a0break", "no\u00a0break"),
    ],
)
def test_visible_spells_out_what_hides_or_reorders(text: str, shown: str) -> None:
    assert visible(text) == shown


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (128, "2 min 08 s"),
        (3599.6, "1 h 00 min"),
        (7380, "2 h 03 min"),
        (86400 * 2 + 3600, "2 d 01 h"),
    ],
)
def test_seconds_in_two_units(seconds: float, words: str) -> None:
    assert format_seconds(seconds) == words


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0, "0"),
        (742.3, "742"),
        (999.6, "1k"),
        (3120, "3.1k"),
        (71210, "71k"),
        (999_700, "1M"),
        (2.5e9, "2.5G"),
    ],
)
def test_compact_counts(value: float, words: str) -> None:
    assert format_compact(value) == words


@pytest.mark.parametrize(
    ("value", "words"),
    [(0, "0"), (0.69314, "0.6931"), (1234.5, "1,234"), (1e-5, "1e-5"), (2.346e8, "2.35e8")],
)
def test_numbers_have_few_digits(value: float, words: str) -> None:
    assert format_number(value) == words


@pytest.mark.parametrize(
    ("count", "words"), [(12, "12 B"), (1536, "1.5 KiB"), (200 * 2**20, "200 MiB")]
)
def test_bytes_in_binary_units(count: int, words: str) -> None:
    assert format_bytes(count) == words


def test_words_for_codes_and_counts() -> None:
    assert humanise("held_out/loss") == "held out: loss"
    assert (plural(1, "rule"), plural(1200, "row")) == ("1 rule", "1,200 rows")
