"""Rows as they may be shown: keys and personal data stay where the row lies."""

import polars as pl

from alignflow.data_validation.patterns import REFUSED_PATTERNS

_MASKED = {
    pattern.code: pattern.pattern
    for pattern in REFUSED_PATTERNS
    if pattern.code in ("secret", "pii")
}
_PRIVATE_KEY = r"(?s)-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----.*"
"""A key with its body, of which the row check needs the first line alone."""


def masked(text: str) -> str:
    """Return the text with `[secret]` and `[pii]` for what the row checks know as such."""
    column = pl.Series([text]).str.replace_all(_PRIVATE_KEY, "[secret]")
    for code, pattern in _MASKED.items():
        column = column.str.replace_all(pattern, f"[{code}]")
    return str(column[0])
