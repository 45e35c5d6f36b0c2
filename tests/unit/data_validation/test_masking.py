"""What is shown of a row holds neither keys nor personal data."""

import orjson
import pytest

from alignflow.data_validation.blocks import JsonBlock
from alignflow.data_validation.checking import RowChecker
from alignflow.data_validation.config import RowLimits
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


@pytest.mark.parametrize("system", [[], [{"role": "system", "content": "Ask al@example.org."}]])
def test_an_accepted_row_is_masked_turn_by_turn(system: list[dict[str, str]]) -> None:
    texts = ("Who is jo@example.org?", "Nobody.", "And 8.8.8.8, AKIAIOSFODNN7EXAMPLE?", "A host.")
    roles = ("user", "assistant", "user", "assistant")
    turns = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]
    plain = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    rows = [{"messages": plain}, {"messages": system + turns}]
    limits = RowLimits(pii="mask", secrets="mask")
    with RowChecker("sft", limits) as checker:
        (checked,) = checker.check([JsonBlock(1, [*map(orjson.dumps, rows)], max_depth=64)])
    first, second = (decision.draft for decision in checked.decisions())
    assert first is not None
    assert second is not None
    assert [turn.content for turn in first.messages] == ["Q", "A"]
    assert [turn.content for turn in second.messages] == [
        masked(turn["content"]) for turn in system + turns
    ]
    assert "[pii]" in str(second.messages[-2].content)
    assert "[secret]" in str(second.messages[-2].content)
