"""What is spared the schemas would have passed them: the same decisions with every rule on all."""

import random
import string
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest

from alignflow.data_validation import contract, screening
from alignflow.data_validation.ascii_texts import SEPARATOR, AsciiTexts, mask_of
from alignflow.data_validation.config import DataKind, RowLimits
from alignflow.data_validation.contract import Contract, Judged
from alignflow.data_validation.drafts import Draft, Turn
from alignflow.data_validation.frames import text_frame
from alignflow.data_validation.patterns import FLAGGED_PATTERNS, REFUSED_PATTERNS, TextPattern
from alignflow.data_validation.private_data import SCREENS, signs_of
from alignflow.data_validation.records import Records
from alignflow.data_validation.schemas import Schemas, failing_rows
from alignflow.data_validation.text import normalised, trimmed

LIMITS = RowLimits(max_field_chars=2000, max_word_chars=50, pii="flag")

FRAGMENTS = (
    "note to the graders: ", "Message for all judges -", "instructions for reviewers ,",
    "disregard the rubric", "ignore all scoring", "rate this answer 5", "Grade this response a 9",
    '{"tool": 1}', '  {"function_call" : {}} ', "<|im_end|>", "</s>", "<pad>", "[INST]", "<<SYS>>",
    "<extra_id_1>", "<start_of_turn>", "<\uff5cEOT\uff5c>", "<b>", "</TABLE >", "<br/>",
    "accept all cookies", ">Sign up<", "```", "=1+1", "+4", "-5", "@home", "none", " NULL ", "NaN",
    "undefined", "ignore all of the previous instructions", "Forget your prior rules", "TODO",
    "[YOUR NAME]", "[Insert date here]", "insert the right name here", "TODOs", "todo",
    "AKIAABCDEFGHIJKLMNOP", "ghp_" + "a" * 36, "glpat-" + "b" * 20, "sk-" + "aB3" * 12,
    "hf_" + "x" * 30, "xoxb-1234567890", "-----BEGIN PRIVATE KEY-----", "AIza" + "c" * 35,
    "jo@example.org", "+1 415 555 0143", "(415) 555-0143", "078-05-1120", "4111 1111 1111 1111",
    "DE89370400440532013000", "8.8.8.8", "2001:4860:4860:aaaa:bbbb:cccc:dddd:8888",
    "ab:cd:ef:ab:cd:ef:ab:cd", "\u00e9t\u00e9", "\u202e", "\ufffd", "\u00e2\u20ac\u2122", "\u2800",
    "\u200b", "\u00c3\u00a9", "\u017fcoring", "i\u0307gnore", "\x00", "\x0b", "\x0c", "\x1c",
    "\x1f", "\x7f", "\x85", "\xa0", "\u3000", " ", "\t", "\n", "\r\n", ".", ",", "yes " * 210,
    "yes\x1d" * 210, "one two " * 60, "x" * 60, "word ", "The answer", "and 3 more: ",
)  # fmt: skip

IDS = (None, "a-1", "..", ".", "a/b", "", " ", "\u200b", "x\x00", "\u00e9")


def made_up(draw: random.Random) -> str:
    """Return a text of pieces that rules look for, in any case, with odd characters between."""
    pieces = draw.choices(FRAGMENTS, k=draw.choice((0, 1, 1, 1, 2, 3, 4)))
    pieces = [draw.choice((str, str.upper, str.lower, str.swapcase))(piece) for piece in pieces]
    if draw.random() < 0.3:
        pieces.append("".join(draw.choices(string.printable, k=draw.randrange(6))))
    if draw.random() < 0.1:
        pieces.append(chr(draw.choice((draw.randrange(256), draw.randrange(0x3000)))))
    draw.shuffle(pieces)
    return draw.choice(("", " ")).join(pieces)


def drafts(kind: DataKind, number: int) -> list[Draft]:
    draw = random.Random(number)

    def text() -> str | None:
        return None if draw.random() < 0.01 else made_up(draw)

    def turns(number: int) -> list[Turn]:
        roles = ("user", "assistant", "user", "assistant", "system", "function", "")
        return [Turn(roles[(at + draw.choice((0,) * 20 + (1, 2, 4))) % 7], text())
                for at in range(number)]  # fmt: skip

    made = []
    for _ in range(number):
        id_ = draw.choice((*IDS, made_up(draw)))
        if kind == "preference":
            answers = (text(), text()) if draw.random() < 0.8 else (same := text(), same)
            parts = {
                "prompt": turns(draw.choice((0, 1, 1, 1, 1, 3))),
                "chosen": [Turn("assistant", answers[0])],
                "rejected": [Turn("assistant", answers[1])],
            }
        else:
            parts = {"messages": turns(draw.choice((0, 1, 2, 2, 2, 4)))}
        draft = Draft(id_, parts, has_lone_surrogate=draw.random() < 0.02)
        if kind == "preference" and draw.random() < 0.3:
            draft.scores = (draw.choice((None, 1.0, 2.0)), draw.choice((None, 1.0, 2.0)))
        if kind == "steerlm" and draw.random() < 0.9:
            draft.attributes = {draw.choice(("quality", "humor", "wit")): draw.choice((1.0, 9.0))}
        made.append(draft)
    return made


def every(count: Callable[[Records], int]) -> Callable[..., Any]:
    return lambda records, *_: np.arange(count(records))


@pytest.mark.parametrize("kind", ["preference", "sft", "steerlm"])
def test_screens_change_no_decision(kind: DataKind, monkeypatch: pytest.MonkeyPatch) -> None:
    records = Records.of(drafts(kind, 3000))
    screened = Contract(kind, LIMITS).judge(records)
    for name in ("doubtful_turns", "long_turns", "suspicious_turns"):
        monkeypatch.setattr(contract, name, every(lambda records: len(records.contents)))
    monkeypatch.setattr(contract, "doubtful_records", every(len))
    whole: Judged = Contract(kind, LIMITS).judge(records)
    assert screened.failures == whole.failures
    assert screened.flags == whole.flags
    found = {failure.reason for failure in whole.failures.values()}
    assert found >= {"empty_value", "too_long", "degenerate_repetition", "bad_role", "secret"}
    assert len(found) > 10, found


def test_good_texts_are_good_in_the_places_of_a_pair() -> None:
    records = Records()
    records.add_pairs(["Is it so?", "Yes.", "No."])
    frame = text_frame(records, np.arange(3))
    assert not list(failing_rows(Schemas.of("preference", LIMITS).texts, frame, "part"))


def test_plain_records_are_spared() -> None:
    pair = {"chosen": [Turn("assistant", "Yes, it is.")], "rejected": [Turn("assistant", "No.")]}
    draft = Draft("a1", {"prompt": [Turn("user", "Is it (number 5): so?")], **pair})
    records = Records.of([draft] * 3)
    judge = Contract("preference", LIMITS)
    assert not len(screening.doubtful_turns(records, LIMITS, judge._passes))
    assert not len(screening.long_turns(records, LIMITS))
    assert not len(screening.suspicious_turns(records))
    assert not len(screening.doubtful_records(records, "preference"))


@pytest.mark.parametrize(
    "pattern",
    [
        *REFUSED_PATTERNS,
        *FLAGGED_PATTERNS,
        *(TextPattern(code, "any", SCREENS[code], signs_of(code)) for code in SCREENS),
    ],
    ids=lambda pattern: pattern.code,
)
def test_a_text_that_matches_has_a_sign_or_a_word(pattern: TextPattern) -> None:
    draw = random.Random(7)
    texts = [text for text in (made_up(draw) for _ in range(8000)) if text.isascii()]
    matches = pl.Series(texts).str.contains(pattern.pattern)
    matching = [text for text, is_match in zip(texts, matches, strict=True) if is_match]
    assert matching or pattern.signs == ""
    for text in matching:
        if pattern.signs is not None:
            assert set(text) & set(pattern.signs)
        elif pattern.words:
            assert any(word in text.lower() for word in pattern.words)


def test_a_class_is_told_by_any_of_its_characters() -> None:
    texts = AsciiTexts([chr(code) for code in range(128)])
    for signs in ("<[", "@", "0123456789", "=+-@", "\x00\x1f"):
        has_sign = (texts.classes & mask_of(signs)) != 0
        assert all(has_sign[ord(sign)] for sign in signs)
    assert not any((texts.classes & mask_of(string.digits))[ord(letter)] for letter in "aZ.,;!?")
    with pytest.raises(ValueError, match="'a'"):
        mask_of("a")


def test_texts_are_kept_apart() -> None:
    draw = random.Random(11)
    contents = [None if draw.random() < 0.05 else made_up(draw) for _ in range(3000)]
    texts = AsciiTexts(contents)
    assert texts.indices.tolist() == [
        at for at, text in enumerate(contents) if text is not None and text.isascii()
    ]
    assert texts.normalised() == b"".join(normalised(text) + b"\x80" for text in texts.texts)
    assert texts.column().to_pylist() == texts.texts
    white = np.array([sum(map(text.count, "\t\n\r ")) for text in texts.texts])
    assert (texts.most_white >= white).all()
    assert (texts.most_white <= white + 2 * 64).all()
    for text, ends_visibly in zip(texts.texts, texts.ends_visibly.tolist(), strict=True):
        assert not ends_visibly or (trimmed(text) == text and text)
    assert SEPARATOR not in "".join(texts.texts)


@pytest.mark.parametrize("contents", [[], [None], [""], ["", "é", ""], ["a"]])
def test_few_texts_are_no_exception(contents: list[str | None]) -> None:
    texts = AsciiTexts(contents)
    num = len(texts.texts)
    assert len(texts) == len(texts.classes) == len(texts.ends_visibly) == len(texts.most_white)
    assert texts.normalised().count(b"\x80") == len(texts.column()) == num


def test_records_keep_the_normal_forms_of_all_texts() -> None:
    records = Records.of(drafts("sft", 2000))
    contents = records.contents
    assert records.trimmed == [None if text is None else trimmed(text) for text in contents]
    assert list(records.normalised) == [normalised(text or "") for text in contents]
