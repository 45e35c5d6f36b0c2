"""Texts as they may be shown or trained on: keys and personal data stay where the row lies."""

from collections.abc import Sequence

import polars as pl

from alignflow.data_validation.drafts import Draft
from alignflow.data_validation.private_data import (
    PRIVATE_CODES,
    PrivateCode,
    holds_private,
    private_parts,
)


def masked(text: str) -> str:
    """Return the text with `[secret]` and `[pii]` for what the row checks know as such."""
    for code in PRIVATE_CODES:
        (parts,) = private_parts(pl.Series([text]), code)
        text = _replaced(text, parts, code)
    return text


def mask_drafts(drafts: Sequence[Draft], codes: Sequence[PrivateCode]) -> dict[int, set[str]]:
    """Mask the turns of drafts in place; return the flags of those that had something to mask."""
    flags: dict[int, set[str]] = {}
    for code in codes:
        places = [
            (row, turns, at)
            for row, draft in enumerate(drafts)
            for turns in draft.parts.values()
            for at in range(len(turns))
        ]
        texts = pl.Series([turns[at].content for _, turns, at in places], dtype=pl.String)
        hits = holds_private(texts, code).arg_true()
        private = texts.gather(hits)
        for hit, text, parts in zip(hits, private, private_parts(private, code), strict=True):
            row, turns, at = places[hit]
            turns[at] = turns[at]._replace(content=_replaced(text, parts, code))
            flags.setdefault(row, set()).add(f"{code}_masked")
    return flags


def _replaced(text: str, parts: set[str], code: PrivateCode) -> str:
    # The longest first: a part may hold another one.
    for part in sorted(parts, key=lambda part: (-len(part), part)):
        text = text.replace(part, f"[{code}]")
    return text
