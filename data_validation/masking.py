"""Texts as they may be shown or trained on: keys and personal data stay where the row lies."""

from collections.abc import Sequence

import polars as pl

from alignflow.data_validation.drafts import Draft
from alignflow.data_validation.private_data import (
    PRIVATE_CODES,
    SCREENS,
    PrivateCode,
    private_parts,
)
from alignflow.data_validation.records import Records


def masked(text: str) -> str:
    """Return the text with `[secret]` and `[pii]` for what the row checks know as such."""
    for code in PRIVATE_CODES:
        (parts,) = private_parts(pl.Series([text]), code)
        text = _replaced(text, parts, code)
    return text


def mask_records(records: Records, codes: Sequence[PrivateCode]) -> dict[int, set[str]]:
    """Mask the turns of records in place; return the flags of those that had something to mask."""
    flags: dict[int, set[str]] = {}
    for turn, found in _mask(records.contents, codes).items():
        flags.setdefault(int(records.record_of[turn]), set()).update(map(_flag, found))
    return flags


def mask_draft(draft: Draft, contents: Sequence[str | None]) -> None:
    """Put what `mask_records` made of the turns of a record into its draft."""
    masked_contents = iter(contents)
    for turns in draft.parts.values():
        turns[:] = [turn._replace(content=next(masked_contents)) for turn in turns]


def _mask(texts: list[str | None], codes: Sequence[PrivateCode]) -> dict[int, set[PrivateCode]]:
    """Mask texts in place; return what those held that had something to mask, by their index."""
    masked_codes: dict[int, set[PrivateCode]] = {}
    for code in codes:
        column = pl.Series(texts, dtype=pl.String)
        suspects = column.str.contains(SCREENS[code]).arg_true()
        suspected = column.gather(suspects)
        found = zip(suspects, suspected, private_parts(suspected, code), strict=True)
        for at, text, parts in found:
            if parts:
                texts[at] = _replaced(text, parts, code)
                masked_codes.setdefault(at, set()).add(code)
    return masked_codes


def _replaced(text: str, parts: set[str], code: PrivateCode) -> str:
    # The longest first: a part may hold another one.
    for part in sorted(parts, key=lambda part: (-len(part), part)):
        text = text.replace(part, f"[{code}]")
    return text


def _flag(code: PrivateCode) -> str:
    return f"{code}_masked"
