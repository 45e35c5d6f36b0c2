"""What a judge is asked about."""

from dataclasses import dataclass

# A carriage return as spreadsheets escape it; some statements of ToxiGen went through one.
_ESCAPED_RETURN = "_x000D_"


@dataclass(frozen=True)
class Statement:
    """A text that is judged, and what it may be compared with."""

    text: str
    true_references: tuple[str, ...] = ()
    """True answers to the question."""
    false_references: tuple[str, ...] = ()
    """False ones."""
    question: str | None = None
    """What the text answers, if it answers something."""


def clean_text(text: str) -> str:
    """Return the text on one line, without escaped carriage returns and doubled white space."""
    return " ".join(text.replace(_ESCAPED_RETURN, " ").split())
