"""What counts as personal data and credentials, what only looks so, and what a recipe does then."""

from pathlib import Path
from typing import Any

import numpy as np
import orjson
import polars as pl
import pytest

from alignflow.data_validation.blocks import parsed_blocks
from alignflow.data_validation.checking import Decision, RowChecker, prompts_of
from alignflow.data_validation.comparison import RowKeys
from alignflow.data_validation.config import RowLimits
from alignflow.data_validation.contamination import BenchmarkTexts
from alignflow.data_validation.judging import BlockJudge
from alignflow.data_validation.private_data import (
    PrivateCode,
    holds_private,
    is_iban,
    passes_luhn,
    private_parts,
)
from alignflow.data_validation.records import Records
from alignflow.data_validation.source_row import SourceRow
from alignflow.data_validation.streams import NamedFile

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9P"


@pytest.mark.parametrize(
    ("code", "text", "part"),
    [
        # Numbers that card schemes publish for tests, and the IBAN of ISO 13616's example.
        ("pii", "pay with 4111 1111 1111 1111.", "4111 1111 1111 1111"),
        ("pii", "5555-5555-5555-4444", "5555-5555-5555-4444"),
        ("pii", "amex 378282246310005", "378282246310005"),
        ("pii", "IBAN GB82 WEST 1234 5698 7654 32 please", "GB82 WEST 1234 5698 7654 32"),
        ("pii", "DE89370400440532013000", "DE89370400440532013000"),
        ("pii", "ping 8.8.8.8 now", "8.8.8.8"),
        (
            "pii",
            "2001:4860:4860:0000:0000:0000:0000:8888",
            "2001:4860:4860:0000:0000:0000:0000:8888",
        ),
        ("pii", "from +4915123456789 to me", "+4915123456789"),
        ("secret", "use AKIAIOSFODNN7EXAMPLE", "AKIAIOSFODNN7EXAMPLE"),
        ("secret", f"ghp_{'a1B2' * 9}", f"ghp_{'a1B2' * 9}"),
        ("secret", f"key=sk-proj-{'aB3-' * 10}", f"sk-proj-{'aB3-' * 10}"),
        ("secret", f"Bearer {JWT}", JWT),
    ],
)
def test_private_parts_are_found(code: PrivateCode, text: str, part: str) -> None:
    assert private_parts(pl.Series([text]), code) == [{part}]
    assert holds_private(pl.Series([text, "nothing", None]), code).to_list() == [True, False, None]


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("pii", "4111 1111 1111 1112"),  # the check digit is another
        ("pii", "9411 1111 1111 1111"),  # of no scheme
        ("pii", "GB82 WEST 1234 5698 7654 33"),
        ("pii", "serve on 127.0.0.1, 10.0.0.7 and 192.168.1.1"),
        ("pii", "example 192.0.2.1, version 999.1.2.3"),
        ("pii", "it costs 1234567 and 12-34-56"),
        ("secret", "sk-this-is-only-a-long-slug-of-words-in-a-title"),
        ("secret", "eyJhbGci is how a token begins"),
        ("secret", "-----BEGIN PUBLIC KEY-----"),
    ],
)
def test_what_only_looks_private_is_none(code: PrivateCode, text: str) -> None:
    assert private_parts(pl.Series([text]), code) == [set()]
    assert holds_private(pl.Series([text]), code).to_list() == [False]


def test_check_digits_are_the_standards() -> None:
    # Luhn: 7992739871x of the patent's example adds up with 3 alone.
    assert [digit for digit in range(10) if passes_luhn(f"7992739871{digit}")] == [3]
    assert is_iban("GB82WEST12345698765432")
    assert not is_iban("GB28WEST12345698765432")


def all_decided(checker: RowChecker, *rows: dict[str, Any]) -> list[Decision]:
    source = (SourceRow(line, b"", dict(row)) for line, row in enumerate(rows, 1))
    with checker:
        (checked,) = checker.check(parsed_blocks(source))
    return list(checked.decisions())


def decided(row: dict[str, Any], limits: RowLimits) -> Decision:
    (decision,) = all_decided(RowChecker("preference", limits), row)
    return decision


PRIVATE = {
    "prompt": "Who is jo@example.org?",
    "chosen": "Ask ann@example.org, the key is AKIAIOSFODNN7EXAMPLE.",
    "rejected": "Nobody.",
}
PRIVATE_MESSAGES = {
    name: [{"role": "user" if name == "prompt" else "assistant", "content": text}]
    for name, text in PRIVATE.items()
}


def test_private_data_is_refused_unless_the_recipe_says_otherwise() -> None:
    assert decided(PRIVATE, RowLimits()).reason == "pii"
    assert decided(PRIVATE, RowLimits(pii="flag")).reason == "secret"


def test_private_data_is_kept_with_a_flag() -> None:
    decision = decided(PRIVATE, RowLimits(pii="flag", secrets="flag"))
    assert decision.flags == ("pii", "secret")
    assert decision.draft is not None
    assert decision.draft.prompt[0].content == PRIVATE["prompt"]


@pytest.mark.parametrize("row", [PRIVATE, PRIVATE_MESSAGES])
def test_private_data_is_masked_in_every_turn(row: dict[str, Any]) -> None:
    decision = decided(row, RowLimits(pii="mask", secrets="mask"))
    assert decision.flags == ("pii_masked", "secret_masked")
    assert decision.draft is not None
    contents = [turn.content for turns in decision.draft.parts.values() for turn in turns]
    assert contents == ["Who is [pii]?", "Ask [pii], the key is [secret].", "Nobody."]


def test_rows_are_compared_as_they_are_once_masked() -> None:
    limits = RowLimits(pii="mask")
    same = {**PRIVATE, "chosen": "Ask ann@example.org.", "rejected": "Ask bob@example.org."}
    assert decided(same, limits).reason == "identical_responses"
    rows = [
        {"prompt": "Who?", "chosen": f"{name}@example.org", "rejected": "Nobody."}
        for name in ("ann", "bob")
    ]
    decisions = all_decided(RowChecker("preference", limits), *rows)
    assert [decision.reason for decision in decisions] == [None, "duplicate_row"]


@pytest.mark.parametrize("row", [PRIVATE, PRIVATE_MESSAGES])
@pytest.mark.parametrize("limits", [RowLimits(pii="mask", secrets=p) for p in ("mask", "flag")])
def test_a_row_is_stored_as_it_was_compared(row: dict[str, Any], limits: RowLimits) -> None:
    (block,) = parsed_blocks([SourceRow(1, b"", row)])
    judged = BlockJudge("preference", limits, BenchmarkTexts(())).judge(block)
    draft = decided(row, limits).draft
    assert draft is not None
    for column, other in zip(judged.keys, RowKeys.of(Records.of([draft])), strict=True):
        np.testing.assert_array_equal(column, other)


def test_training_prompts_are_masked_like_the_rows_beside_them(tmp_path: Path) -> None:
    limits = RowLimits(pii="mask", secrets="mask")
    train = tmp_path / "train.jsonl"
    train.write_bytes(orjson.dumps({**PRIVATE, "prompt": "Who is ann@example.org?"}) + b"\n")
    prompts = prompts_of(NamedFile(train, "train.jsonl"), "preference", limits)
    (decision,) = all_decided(RowChecker("preference", limits, training_prompts=prompts), PRIVATE)
    assert decision.reason == "split_leak"
