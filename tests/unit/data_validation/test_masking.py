"""What is shown of a row holds neither keys nor personal data."""

import pytest

from alignflow.data_validation.masking import masked


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("use AKIAIOSFODNN7EXAMPLE now", "use [secret] now"),
        ("write to jo@example.org or jo@example.com", "write to [pii] or [pii]"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIB\nAAKC", "[secret]"),
        (
            "key: -----BEGIN PRIVATE KEY-----\nMIIE\n-----END PRIVATE KEY-----, keep it",
            "key: [secret], keep it",
        ),
        ("call +14155550143 or +14155550143", "call [pii] or [pii]"),
        ("nothing to hide", "nothing to hide"),
    ],
)
def test_keys_and_personal_data_are_masked(text: str, shown: str) -> None:
    assert masked(text) == shown
