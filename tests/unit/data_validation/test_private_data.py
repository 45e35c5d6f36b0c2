"""What counts as personal data and credentials, what only looks so, and what a recipe does then."""

import polars as pl
import pytest

from alignflow.data_validation.checking import Decision, RowChecker
from alignflow.data_validation.config import RowLimits
from alignflow.data_validation.private_data import (
    PrivateCode,
    holds_private,
    is_iban,
    passes_luhn,
    private_parts,
)
from alignflow.data_validation.source_row import SourceRow

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


def decided(row: dict[str, str], limits: RowLimits) -> Decision:
    checker = RowChecker("preference", limits)
    ((decision,),) = checker.check([SourceRow(1, b"", dict(row))])
    return decision


PRIVATE = {
    "prompt": "Who is jo@example.org?",
    "chosen": "Ask ann@example.org, the key is AKIAIOSFODNN7EXAMPLE.",
    "rejected": "Nobody.",
}


def test_private_data_is_refused_unless_the_recipe_says_otherwise() -> None:
    assert decided(PRIVATE, RowLimits()).reason == "pii"
    assert decided(PRIVATE, RowLimits(pii="flag")).reason == "secret"


def test_private_data_is_kept_with_a_flag() -> None:
    decision = decided(PRIVATE, RowLimits(pii="flag", secrets="flag"))
    assert decision.flags == ("pii", "secret")
    assert decision.draft is not None
    assert decision.draft.prompt[0].content == PRIVATE["prompt"]


def test_private_data_is_masked_in_every_turn() -> None:
    decision = decided(PRIVATE, RowLimits(pii="mask", secrets="mask"))
    assert decision.flags == ("pii_masked", "secret_masked")
    assert decision.draft is not None
    contents = [turn.content for turns in decision.draft.parts.values() for turn in turns]
    assert contents == ["Who is [pii]?", "Ask [pii], the key is [secret].", "Nobody."]


def test_rows_are_compared_as_they_are_once_masked() -> None:
    limits = RowLimits(pii="mask")
    same = {**PRIVATE, "chosen": "Ask ann@example.org.", "rejected": "Ask bob@example.org."}
    assert decided(same, limits).reason == "identical_responses"
    checker = RowChecker("preference", limits)
    rows = [
        {"prompt": "Who?", "chosen": f"{name}@example.org", "rejected": "Nobody."}
        for name in ("ann", "bob")
    ]
    (decisions,) = checker.check(SourceRow(line, b"", row) for line, row in enumerate(rows, 1))
    assert [decision.reason for decision in decisions] == [None, "duplicate_row"]
