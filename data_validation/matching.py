"""Which rows of a text frame match what is refused or flagged, as expressions of polars."""

from functools import partial

import polars as pl

from alignflow.data_validation.drafts import ASSISTANT
from alignflow.data_validation.patterns import TextPattern, Where
from alignflow.data_validation.private_data import PrivateCode, holds_private


def is_where(where: Where) -> pl.Expr:
    """Return which rows of a text frame a pattern looks at."""
    if where == "response":
        return pl.col("role") == ASSISTANT
    if where == "prompt":
        return pl.col("role") != ASSISTANT
    return pl.lit(value=True)


def matches_where_it_counts(pattern: TextPattern) -> pl.Expr:
    """Return which rows of a text frame match a pattern in a text where it counts."""
    return is_where(pattern.where) & pl.col("content").str.contains(pattern.pattern)


def holds(code: PrivateCode) -> pl.Expr:
    """Return which rows of a text frame hold personal data or credentials."""
    return pl.col("content").map_batches(partial(holds_private, code=code), pl.Boolean)
