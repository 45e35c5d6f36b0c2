"""Scores as a person reads them, the same on the page and in the terminal."""

from alignflow.reporting.model import ScoreRow

_NONE = "\N{EN DASH}"


def format_score(row: ScoreRow, value: float | None) -> str:
    """Return a value of the row: shares as percentages; a dash where there is none."""
    if value is None:
        return _NONE
    text = f"{100 * value:.1f} %" if row.is_share else f"{value:.3f}"
    return with_minus(text)


def format_difference(row: ScoreRow) -> str:
    """Return the aligned model's lead with its sign; of shares, in percentage points."""
    if row.difference is None:
        return _NONE
    text = f"{100 * row.difference:+.1f} pts" if row.is_share else f"{row.difference:+.3f}"
    return with_minus(text)


def with_minus(text: str) -> str:
    """Return a number's text with a true minus sign, which is as wide as a plus."""
    return text.replace("-", "\N{MINUS SIGN}")
