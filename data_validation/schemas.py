"""The rules that a row must keep, as pandera schemas; a check's name is its reason code.

Importing pandera takes as long as all else that judges rows: whoever needs it only for some does so
late.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, Self

import polars as pl

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    import pandera.errors
    import pandera.polars as pa

from alignflow.data_validation.canonical import ATTRIBUTES, MAX_ATTRIBUTE
from alignflow.data_validation.config import DataKind, RowLimits
from alignflow.data_validation.drafts import ASSISTANT, SYSTEM, USER
from alignflow.data_validation.frames import (
    ATTRIBUTE_COLUMNS,
    PARTS,
    RECORD_COLUMNS,
    ROLES,
    TEXT_COLUMNS,
)
from alignflow.data_validation.matching import holds, is_where, matches_where_it_counts
from alignflow.data_validation.patterns import (
    CODE_FENCE,
    MIN_REPETITION_WORDS,
    PAGE_BOILERPLATE,
    PAGE_MARKUP,
    REFUSED_PATTERNS,
)
from alignflow.data_validation.private_data import codes_under

_NULL_CHECK = "not_nullable"
"""pandera's name for a null where the column has none."""
_VISIBLE = r"[^\s\p{Cf}\x{115F}\x{1160}\x{2800}\x{3164}]"
_PATH_PARTS = r"[/\\\x00]|\A\.{1,2}\z"


class Schemas(NamedTuple):
    """The schemas of one kind of rows."""

    texts: pa.DataFrameSchema
    lengths: pa.DataFrameSchema
    patterns: pa.DataFrameSchema
    records: pa.DataFrameSchema
    attributes: pa.DataFrameSchema

    @classmethod
    def of(cls, kind: DataKind, limits: RowLimits) -> Self:
        """Return the schemas of a kind."""
        return cls(
            text_schema(limits),
            length_schema(limits),
            pattern_schema(limits),
            record_schema(kind),
            attribute_schema(),
        )


SchemaName = Literal["texts", "lengths", "patterns", "records", "attributes"]


def failing_rows(
    schema: pa.DataFrameSchema, frame: pl.DataFrame, detail_column: str | None
) -> Iterator[tuple[int, str, str | None]]:
    """Validate a frame; yield which rows fail which rule, and where."""
    try:
        schema.validate(frame, lazy=True)
    except pandera.errors.SchemaErrors as error:
        cases = error.failure_cases
        if cases["index"].null_count():
            # A column is missing or has another type: the frame is at fault, not its data.
            raise
    else:
        return
    at = cases["index"].to_list()
    rows = frame["row"].gather(at).to_list()
    details = frame[detail_column].gather(at).to_list() if detail_column else [None] * len(at)
    for row, detail, check in zip(rows, details, cases["check"], strict=True):
        yield row, "null_value" if check == _NULL_CHECK else check, detail


def text_schema(limits: RowLimits) -> pa.DataFrameSchema:
    """Return the schema of `frames.text_frame`, but for what the two below hold."""
    content = [
        _check("empty_value", pl.col("content").str.contains(_VISIBLE)),
        _check("too_long", pl.col("content").str.len_chars() <= limits.max_field_chars),
    ]
    return pa.DataFrameSchema(
        {
            **_columns(TEXT_COLUMNS),
            "part": pa.Column(pl.String, _check("part", pl.col("part").is_in(PARTS))),
            "role": pa.Column(pl.String, _check("bad_role", pl.col("role").is_in(ROLES))),
            "content": pa.Column(pl.String, content),
        },
        checks=_check("role_order", _is_in_order()),
    )


def length_schema(limits: RowLimits) -> pa.DataFrameSchema:
    """Return the schema of texts that are long, or of many words."""
    return pa.DataFrameSchema(
        {
            "content": pa.Column(
                pl.String,
                [
                    _text_check("too_long", lambda text: not _has_long_word(text, limits)),
                    _text_check("degenerate_repetition", lambda text: not is_degenerate(text)),
                ],
            )
        }
    )


def pattern_schema(limits: RowLimits) -> pa.DataFrameSchema:
    """Return the schema of texts that may match a pattern."""
    patterns = [_check(each.code, ~matches_where_it_counts(each)) for each in REFUSED_PATTERNS]
    private = [_check(code, ~holds(code)) for code in codes_under(limits, "refuse")]
    return pa.DataFrameSchema(checks=[*patterns, *private, _check("html_markup", ~_is_page())])


def record_schema(kind: DataKind) -> pa.DataFrameSchema:
    """Return the schema of `frames.record_frame`."""
    # An echo may well be what makes a response undesirable.
    is_undesirable = ~pl.col("label").fill_null(value=True)
    checks = [
        _check("empty_value", pl.col("fewest_turns") > 0),
        _check("prompt_echo", (pl.col("question") != pl.col("response")) | is_undesirable),
        _check("identical_responses", pl.col("response") != pl.col("rejected")),
        _check("score_contradiction", pl.col("score_chosen") >= pl.col("score_rejected")),
        _check("lone_surrogate", ~pl.col("has_lone_surrogate")),
    ]
    if kind == "steerlm":
        checks.append(_check("empty_value", pl.col("num_attributes") > 0))
    nullable = ["question", "response", "rejected", "score_chosen", "score_rejected"]
    if kind != "unpaired":
        nullable.append("label")
    return pa.DataFrameSchema(
        {
            **_columns(RECORD_COLUMNS, nullable),
            "id": pa.Column(
                pl.String,
                [
                    _check("empty_value", pl.col("id").str.contains(_VISIBLE)),
                    _check("bad_id", ~pl.col("id").str.contains(_PATH_PARTS)),
                ],
                nullable=True,
            ),
        },
        checks=checks,
    )


def attribute_schema() -> pa.DataFrameSchema:
    """Return the schema of `frames.attribute_frame`."""
    value = [
        _check("wrong_type", pl.col("value") == pl.col("value").floor()),
        _check("out_of_range", pl.col("value").is_between(0, MAX_ATTRIBUTE)),
    ]
    name = _check("unknown_attribute", pl.col("name").is_in(ATTRIBUTES))
    return pa.DataFrameSchema(
        {
            **_columns(ATTRIBUTE_COLUMNS),
            "name": pa.Column(pl.String, name),
            "value": pa.Column(pl.Float64, value),
        }
    )


def _columns(types: dict[str, Any], nullable: Sequence[str] = ()) -> dict[str, pa.Column]:
    return {name: pa.Column(type_, nullable=name in nullable) for name, type_ in types.items()}


def _check(code: str, is_good: pl.Expr) -> pa.Check:
    """Return a check that fails with `code` where the expression is false; null passes."""
    return pa.Check(lambda data: data.lazyframe.select(is_good.fill_null(value=True)), name=code)


def _text_check(code: str, is_good: Callable[[str], bool]) -> pa.Check:
    """Return a check of contents that only a function of Python can judge."""

    def judge(contents: pl.Series) -> pl.Series:
        return pl.Series([text is None or is_good(text) for text in contents], dtype=pl.Boolean)

    return _check(code, pl.col("content").map_batches(judge, return_dtype=pl.Boolean))


def _is_in_order() -> pl.Expr:
    """Return where a turn stands in a place that chat templates render.

    A conversation starts with at most one system turn, then user and assistant take turns. It
    ends with the assistant, a prompt with the user; a response is one assistant turn.
    """
    offset = (pl.col("first_role") == SYSTEM).cast(pl.Int32)
    turn = pl.col("at") - offset
    by_place = (
        pl.when(turn < 0).then(pl.lit(SYSTEM))
        .when(turn % 2 == 0).then(pl.lit(USER))
        .otherwise(pl.lit(ASSISTANT))
    )  # fmt: skip
    is_last = pl.col("at") == pl.col("num_turns") - 1
    is_in_place = pl.col("role") == by_place
    ends_with = pl.when(pl.col("part") == "prompt").then(pl.lit(USER)).otherwise(pl.lit(ASSISTANT))
    is_response = pl.col("part").is_in(["chosen", "rejected", "response"])
    return (
        pl.when(is_response)
        .then((pl.col("num_turns") == 1) & (pl.col("role") == ASSISTANT))
        .otherwise(is_in_place & (~is_last | (pl.col("role") == ends_with)))
    )


def _is_page() -> pl.Expr:
    """Return where a response looks like a page that was saved, and not like code that is shown."""
    content = pl.col("content")
    return (
        is_where("response")
        & content.str.contains(PAGE_BOILERPLATE)
        & content.str.contains(PAGE_MARKUP)
        & ~content.str.contains(CODE_FENCE, literal=True)
    )


def _has_long_word(text: str, limits: RowLimits) -> bool:
    longest = limits.max_word_chars
    return len(text) > longest and max(map(len, text.split()), default=0) > longest


def is_degenerate(text: str) -> bool:
    """Say whether one word is more than half of over 200 words."""
    words = text.split()
    # One word that fills more than half leaves at most half of the places to different ones.
    if len(words) <= MIN_REPETITION_WORDS or 2 * len(set(words)) > len(words) + 2:
        return False
    [(word, count)] = Counter(words).most_common(1)
    # The bars of a table and the dashes of its rule are no words.
    return 2 * count > len(words) and any(map(str.isalnum, word))
