"""A row brought into the canonical form, before it is checked."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from alignflow.data_validation.reasons import RowRefused

SYSTEM, USER, ASSISTANT = "system", "user", "assistant"


class Turn(NamedTuple):
    """One message. Roles that are no text are empty, missing contents None: checks refuse both."""

    role: str
    content: str | None


@dataclass(slots=True)
class Draft:
    """One record of any kind; what can't have a type was refused before, the rest is unchecked."""

    id: str | None
    parts: dict[str, list[Turn]]
    """`prompt`, `chosen` and `rejected` of a preference; `prompt` and `response` of an unpaired
    row; `messages` of the other kinds."""
    scores: tuple[float | None, float | None] = (None, None)
    """Of chosen and rejected."""
    label: bool | None = None
    """Whether an unpaired response is desirable."""
    attributes: dict[str, float | None] = field(default_factory=dict)
    tree: str | None = None
    """The conversation tree that the row says it is from; its rows stay on one side of a split."""
    is_prompt_implicit: bool = False
    has_lone_surrogate: bool = False

    @property
    def prompt(self) -> list[Turn]:
        """The turns that are answered."""
        return self.parts["prompt"] if "prompt" in self.parts else self.parts["messages"][:-1]

    @property
    def messages(self) -> list[Turn]:
        """The conversation; a preference's is that of its chosen response."""
        if "messages" in self.parts:
            return self.parts["messages"]
        response = self.parts["response" if "response" in self.parts else "chosen"]
        return [*self.parts["prompt"], *response]


def require(row: Mapping[str, Any], *keys: str) -> None:
    """Refuse a row that lacks one of the keys."""
    missing = [key for key in keys if key not in row]
    if missing:
        raise RowRefused("missing_key", ", ".join(missing))


def text_of(row: Mapping[str, Any], key: str) -> str | None:
    """Return the text under a key, None for null."""
    value = row[key]
    if value is None or isinstance(value, str):
        return value
    raise RowRefused("wrong_type", key)


def id_of(row: Mapping[str, Any]) -> str | None:
    """Return the id of a row; a whole number counts as its digits."""
    value = row.get("id")
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise RowRefused("wrong_type", "id")


def number_of(value: Any, name: str) -> float | None:
    """Return a number as a float, None for null; a Python bool is no number."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RowRefused("wrong_type", name)
    return float(value)


def turns_of(messages: Any, name: str) -> list[Turn]:
    """Return a list of message objects as turns.

    Raises:
        RowRefused: `wrong_type` or `bad_message`.
    """
    if not isinstance(messages, list):
        raise RowRefused("wrong_type", name)
    return [_turn(message, name) for message in messages]


def _turn(message: Any, name: str) -> Turn:
    if not isinstance(message, dict):
        raise RowRefused("wrong_type", name)
    if "role" not in message or "content" not in message:
        raise RowRefused("bad_message", name)
    role, content = message["role"], message["content"]
    if content is not None and not isinstance(content, str):
        raise RowRefused("wrong_type", f"{name}: content")
    return Turn(role if isinstance(role, str) else "", content)
