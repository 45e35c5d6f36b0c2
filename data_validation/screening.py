"""Which texts and records may fail a rule at all; the others need no look by the schemas.

Each function may name too many, never too few: the rules themselves are in `schemas`. What is known
of ASCII texts by their bytes spares most of them every rule; the others are named nearly always.
"""

import re
from collections.abc import Callable, Iterable
from functools import reduce
from operator import or_

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow.compute as pc

from alignflow.data_validation.ascii_texts import AsciiTexts, Indices, mask_of
from alignflow.data_validation.config import DataKind, RowLimits
from alignflow.data_validation.patterns import (
    FLAGGED_PATTERNS,
    MIN_REPETITION_WORDS,
    REFUSED_PATTERNS,
    TextPattern,
)
from alignflow.data_validation.private_data import PRIVATE_CODES, SCREENS, signs_of
from alignflow.data_validation.records import Records, Shape

_WHITE_SPACE = r"[\s\x1c-\x1f]"
"""What `str.split` takes for white space."""
_PLAIN_ID = re.compile(r"[0-9A-Za-z_][0-9A-Za-z_.-]*")
_NO_SCORES = (None, None)

_PATTERNS = (
    *REFUSED_PATTERNS,
    # A page is told by its boilerplate, but its markup is flagged.
    *FLAGGED_PATTERNS,
    *(TextPattern(code, "any", SCREENS[code], signs_of(code)) for code in PRIVATE_CODES),
)
_SIGNED = [(each.pattern, mask_of(each.signs)) for each in _PATTERNS if each.signs is not None]
_WORDED = [each.pattern for each in _PATTERNS if each.words]
_UNSIGNED = [each.pattern for each in _PATTERNS if each.signs is None and not each.words]
_WORDS = "|".join(re.escape(word) for each in _PATTERNS for word in each.words)


def doubtful_turns(records: Records, limits: RowLimits, passes: Callable[[Shape], bool]) -> Indices:
    """Return the turns that may fail `text_schema`.

    Args:
        records: Whose turns.
        limits: Bounds of the texts.
        passes: Whether records of a shape pass the schema, if each of their texts does.
    """
    ascii_ = records.ascii
    is_good = ascii_.ends_visibly & (ascii_.lengths <= limits.max_field_chars)
    is_doubtful = np.ones(len(records.contents), dtype=bool)
    is_doubtful[ascii_.indices[is_good]] = False
    is_regular = np.array([passes(shape) for shape in records.shapes])
    is_doubtful |= ~is_regular[records.shape_of][records.record_of]
    return np.flatnonzero(is_doubtful)


def long_turns(records: Records, limits: RowLimits) -> Indices:
    """Return the turns that may fail `length_schema`."""
    ascii_ = records.ascii
    # So many words have at least so many letters, and white space in between.
    is_long = (ascii_.lengths > limits.max_word_chars) | (
        (ascii_.lengths > 2 * MIN_REPETITION_WORDS) & (ascii_.most_white >= MIN_REPETITION_WORDS)
    )
    others = _other_texts(records).str
    num_bytes = others.len_bytes().fill_null(0)
    is_long_other = (num_bytes > limits.max_word_chars) | (
        (num_bytes > 2 * MIN_REPETITION_WORDS)
        & (others.count_matches(_WHITE_SPACE) >= MIN_REPETITION_WORDS)
    )
    return _merged(ascii_.indices[is_long], records.not_ascii[is_long_other.to_numpy()])


def suspicious_turns(records: Records) -> Indices:
    """Return the turns that match a pattern, wherever it counts."""
    matches = _matches_any(_other_texts(records), [each.pattern for each in _PATTERNS])
    return _merged(records.ascii.indices[_is_suspicious(records.ascii)], records.not_ascii[matches])


def doubtful_records(records: Records, kind: DataKind) -> Indices:
    """Return the records that may fail `record_schema` or carry a flag by their numbers."""
    if kind in ("unpaired", "steerlm"):
        # All of them have a label, or attributes.
        return np.arange(len(records))
    is_doubtful = records.fewest_turns < 1
    is_doubtful |= _is_doubtful_id(records.ids)
    is_doubtful |= np.array([scores != _NO_SCORES for scores in records.scores], dtype=bool)
    is_doubtful |= _is_repeated_text(records)
    is_doubtful[list(records.lone_surrogates)] = True
    return np.flatnonzero(is_doubtful)


def _is_doubtful_id(ids: Iterable[str | None]) -> npt.NDArray[np.bool_]:
    return np.array([id_ is not None and not _PLAIN_ID.fullmatch(id_) for id_ in ids], dtype=bool)


def _is_repeated_text(records: Records) -> npt.NDArray[np.bool_]:
    """[records] Return for each whether an answer is its question, or the other answer."""
    texts = records.trimmed
    question, response, rejected = (turns.tolist() for turns in records.last_turns.values())
    return np.array(
        [
            texts[answer] in (texts[asked], texts[worse])
            for asked, answer, worse in zip(question, response, rejected, strict=True)
        ],
        dtype=bool,
    )


def _is_suspicious(texts: AsciiTexts) -> npt.NDArray[np.bool_]:
    """[texts] Return for each whether it matches a pattern."""
    is_suspicious = np.zeros(len(texts), dtype=bool)
    if not len(texts):
        return is_suspicious
    column = texts.column()
    contents = pl.Series(pl.from_arrow(column))
    in_lower_case = pl.Series(pl.from_arrow(pc.ascii_lower(column)))
    is_suspicious |= _matches_any(contents, _UNSIGNED)
    looks = [
        (_WORDED, in_lower_case.str.contains(_WORDS).to_numpy()),
        *(([pattern], (texts.classes & mask) != 0) for pattern, mask in _SIGNED),
    ]
    for patterns, is_looked_at in looks:
        at = np.flatnonzero(is_looked_at)
        if len(at):
            is_suspicious[at] |= _matches_any(contents[at], patterns)
    return is_suspicious


def _matches_any(texts: pl.Series, patterns: Iterable[str]) -> npt.NDArray[np.bool_]:
    """[texts] Return for each whether it matches one of the patterns."""
    # One expression of all would have no letters to look for first, and take 30 times as long.
    matches = (texts.str.contains(pattern).fill_null(value=False) for pattern in patterns)
    is_matched: npt.NDArray[np.bool_] = reduce(or_, matches).to_numpy()
    return is_matched


def _other_texts(records: Records) -> pl.Series:
    turns = records.not_ascii.tolist()
    return pl.Series([records.contents[turn] for turn in turns], dtype=pl.String)


def _merged(*turns: Indices) -> Indices:
    merged: Indices = np.sort(np.concatenate(turns))
    return merged
