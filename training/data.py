"""From a dataset artifact to tokenised rows.

Rank 0 tokenises into the run folder, batch by batch; every rank maps the result, and a resumed job
finds it there. Long rows are cut at the end and counted. A row that can't be learnt from is refused
by name: its answer was cut away, its template makes the mask wrong, its two answers became equal.
"""

import hashlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from alignflow.data_validation.canonical import ATTRIBUTES, Split, read_tables, shards
from alignflow.errors import DataError
from alignflow.jobs.worker import raise_if_stop_requested
from alignflow.training.chat import ChatTokenizer, RenderedChat, TokenizedChat
from alignflow.training.megatron.architecture import check_positions
from alignflow.training.rows import RowWriter, TokenRows
from alignflow.training.steering import label, steered
from alignflow.training.tokenizer import TOKENIZER_FILES

_BATCH_RECORDS = 512
_FORMAT = "labelled"
"""How the files of rows are laid out: a job that an older version began tokenises anew."""


def _cut(row: TokenizedChat, max_length: int) -> TokenizedChat:
    """Return the row's first tokens; the first of all is never learnt, for nothing predicts it."""
    is_learnt_T = row.is_learnt_T[:max_length].copy()
    is_learnt_T[:1] = False
    if not is_learnt_T.any():
        raise DataError(
            f"nothing of the answer is left within {max_length} tokens.",
            reason="response_cut_away",
        )
    return TokenizedChat(row.tokens_T[:max_length], is_learnt_T)


@dataclass(frozen=True)
class RecordKind:
    """How the records of a dataset become rows."""

    name: str
    columns: tuple[str, ...]
    """Columns that the records must have."""
    rows_per_item: int
    render: Callable[[ChatTokenizer, Mapping[str, Any]], list[RenderedChat]]
    check: Callable[[Sequence[TokenizedChat]], None]
    """Raises DataError where the rows of a record, already cut, don't fit together."""
    labels: Callable[[Mapping[str, Any]], Sequence[tuple[float, ...]]] = lambda record: [()]
    """The numbers that each item of a record is labelled with; raises DataError where it lacks
    one. A record has as many items as these."""
    form: str = ""
    """What `render` does beyond the kind's own way; a part of what determines the tokens."""
    fit: Callable[[TokenizedChat, int], TokenizedChat] = _cut
    """Returns a row that has at most so many tokens; raises DataError where there can't be one."""


def _render_demonstration(chat: ChatTokenizer, record: Mapping[str, Any]) -> list[RenderedChat]:
    return [chat.render(record["messages"])]


def _render_pair(chat: ChatTokenizer, record: Mapping[str, Any]) -> list[RenderedChat]:
    return [
        chat.render(
            [*record["prompt"], {"role": "assistant", "content": record[answer]}],
            learn="last_turn",
        )
        for answer in ("chosen", "rejected")
    ]


def _render_last_answer(chat: ChatTokenizer, record: Mapping[str, Any]) -> list[RenderedChat]:
    return [chat.render(record["messages"], learn="last_turn")]


def _render_steered(chat: ChatTokenizer, record: Mapping[str, Any]) -> list[RenderedChat]:
    ratings = {name: value for name, value in record["attributes"].items() if value is not None}
    return [chat.render(steered(record["messages"], ratings), learn="last_turn")]


def _ratings(record: Mapping[str, Any]) -> list[tuple[float, ...]]:
    """Return the rating of every attribute, NaN where it isn't known."""
    ratings = (record["attributes"].get(name) for name in ATTRIBUTES)
    return [tuple(math.nan if rating is None else float(rating) for rating in ratings)]


def _render_response(chat: ChatTokenizer, record: Mapping[str, Any]) -> list[RenderedChat]:
    answer = {"role": "assistant", "content": record["response"]}
    return [chat.render([*record["prompt"], answer], learn="last_turn")]


def _score_gap(record: Mapping[str, Any]) -> list[tuple[float]]:
    chosen, rejected = record["score_chosen"], record["score_rejected"]
    if chosen is None or rejected is None:
        raise DataError("the pair has no scores.", reason="no_scores")
    return [(chosen - rejected,)]


def _render_prompt(chat: ChatTokenizer, record: Mapping[str, Any]) -> list[RenderedChat]:
    return [chat.render_prompt(record["prompt"])]


def _check_single(rows: Sequence[TokenizedChat]) -> None:
    """A single row has nothing it must fit to, nor have two that stand for one another."""


def _check_pair(rows: Sequence[TokenizedChat]) -> None:
    chosen, rejected = rows
    if np.array_equal(chosen.tokens_T, rejected.tokens_T):
        raise DataError("both answers are equal once cut.", reason="pair_equal_after_cut")
    if not np.array_equal(_prompt(chosen), _prompt(rejected)):
        raise DataError(
            "the first characters of an answer merge with the prompt into one token.",
            reason="prompt_not_shared",
        )


def _uncut(row: TokenizedChat, max_length: int) -> TokenizedChat:
    """Refuse a prompt that is too long: cut, it would ask for something else."""
    if len(row.tokens_T) > max_length:
        raise DataError(f"the prompt has more than {max_length} tokens.", reason="prompt_too_long")
    return row


def _prompt(row: TokenizedChat) -> Any:
    return row.tokens_T[: int(row.is_learnt_T.argmax())]


DEMONSTRATIONS = RecordKind("sft", ("messages",), 1, _render_demonstration, _check_single)
"""Conversations of which every assistant turn is learnt."""

PREFERENCES = RecordKind(
    "preference", ("prompt", "chosen", "rejected"), 2, _render_pair, _check_pair
)
"""Pairs of answers to one prompt; in each the answer is learnt, the prompt is not."""

SCORED_PREFERENCES = RecordKind(
    "preference",
    ("prompt", "chosen", "rejected", "score_chosen", "score_rejected"),
    2,
    _render_pair,
    _check_pair,
    _score_gap,
)
"""Pairs labelled with the chosen answer's score less that of the rejected one."""

JUDGED_RESPONSES = RecordKind(
    "unpaired",
    ("prompt", "response", "label"),
    1,
    _render_response,
    _check_single,
    lambda record: [(float(record["label"]),)],
)
"""Answers by themselves, labelled with 1 where desirable and 0 where not."""

JUDGED_PREFERENCES = RecordKind(
    "preference",
    ("prompt", "chosen", "rejected"),
    1,
    _render_pair,
    _check_pair,
    lambda record: [(1.0,), (0.0,)],
)
"""Pairs taken apart: the chosen answer is a desirable one, the rejected one is not."""


RATED = RecordKind(
    "steerlm", ("messages", "attributes"), 1, _render_last_answer, _check_single, _ratings
)
"""Conversations labelled with how people rate their last answer, in the order of `ATTRIBUTES`; NaN
where a rating isn't known."""

STEERED = replace(RATED, render=_render_steered, form="steered")
"""The same, with the ratings in the prompt of the answer."""


def steered_preferences(ratings: Mapping[str, int]) -> RecordKind:
    """Return the kind of pairs whose prompts ask for answers of these ratings."""

    def render(chat: ChatTokenizer, record: Mapping[str, Any]) -> list[RenderedChat]:
        return _render_pair(chat, {**record, "prompt": steered(record["prompt"], ratings)})

    return replace(PREFERENCES, render=render, form=label(ratings))


PROMPTS = RecordKind("preference", ("prompt",), 1, _render_prompt, _check_single, fit=_uncut)
"""The prompts of pairs, ready to be answered; nothing of them is learnt."""


def steered_prompts(ratings: Mapping[str, int]) -> RecordKind:
    """Return the kind of rated conversations of which the last prompt is to be answered anew.

    An item is two rows: the prompt that asks for answers of these ratings, and the prompt alone.
    """

    def render(chat: ChatTokenizer, record: Mapping[str, Any]) -> list[RenderedChat]:
        prompt = record["messages"][:-1]
        return [chat.render_prompt(steered(prompt, ratings)), chat.render_prompt(prompt)]

    return RecordKind(
        RATED.name, ("messages",), 2, render, _check_single, form=label(ratings), fit=_uncut
    )


def load_rows(
    dataset: Path,
    split: Split,
    kind: RecordKind,
    *,
    model: Path,
    max_length: int,
    cache: Path,
    is_writer: bool,
) -> TokenRows:
    """Return the tokenised rows of a split, made by the writer and awaited by all others.

    Args:
        dataset: Dataset artifact.
        split: Which of its two splits.
        kind: What its records are.
        model: Hugging Face folder whose tokenizer and chat template are used.
        max_length: Tokens a row is cut at.
        cache: Folder that all ranks see and that outlives a killed job.
        is_writer: Whether this process tokenises; true for exactly one.

    Raises:
        ConfigError: Rows may be longer than the model's positions.
        DataError: The dataset or the tokenizer can't be used.
    """
    check_positions(model, max_length, "max_length")
    digest = rows_digest(dataset, split, kind, model, max_length)
    folder = cache / split
    rows = written_once(
        folder,
        digest,
        kind.rows_per_item,
        partial(_tokenize, dataset, split, kind, model, max_length),
        is_writer=is_writer,
    )
    if split == "train" and not len(rows):
        raise DataError(_nothing_left(dataset, rows))
    return rows


def written_once(
    folder: Path,
    digest: str,
    rows_per_item: int,
    write: Callable[[RowWriter], None],
    *,
    is_writer: bool,
) -> TokenRows:
    """Return the rows of a folder, written by the writer if need be and awaited by all others.

    Args:
        folder: Folder that all ranks see and that outlives a killed job.
        digest: Of all that determines the rows; others that lie there count as none.
        rows_per_item: 1, or 2 for pairs.
        write: Appends them.
        is_writer: Whether this process writes; true for exactly one.
    """
    rows = TokenRows.open(folder, digest=digest, rows_per_item=rows_per_item)
    if rows is None and is_writer:
        with RowWriter(folder, digest) as writer:
            write(writer)
    while rows is None:
        raise_if_stop_requested()
        time.sleep(0.05)
        rows = TokenRows.open(folder, digest=digest, rows_per_item=rows_per_item)
    return rows


def _nothing_left(dataset: Path, rows: TokenRows) -> str:
    counts = sorted(rows.summary.reasons.items(), key=lambda item: -item[1])
    refused = ", ".join(f"{count} for {reason}" for reason, count in counts)
    return f"{dataset}: no training row is left to learn from (refused: {refused or 'none'})."


def _tokenize(
    dataset: Path,
    split: Split,
    kind: RecordKind,
    model: Path,
    max_length: int,
    writer: RowWriter,
) -> None:
    chat = ChatTokenizer.load(model)
    for batch in read_tables(dataset, split, batch_rows=_BATCH_RECORDS):
        raise_if_stop_requested()
        check_columns(dataset, kind, batch.schema.names)
        _add_records(writer, kind, chat, batch.to_pylist(), max_length)


def check_columns(dataset: Path, kind: RecordKind, names: Sequence[str]) -> None:
    """Refuse a dataset of another kind.

    Raises:
        DataError: It lacks a column.
    """
    missing = [name for name in ("id", *kind.columns) if name not in names]
    if missing:
        raise DataError(
            f"{dataset}: this is no {kind.name} dataset, it has no column {missing[0]!r}; "
            f"ingest it with --kind {kind.name}."
        )


def _add_records(
    writer: RowWriter,
    kind: RecordKind,
    chat: ChatTokenizer,
    records: Iterable[Mapping[str, Any]],
    max_length: int,
) -> None:
    """Tokenise a batch of records at once; what can't be learnt from is refused by name."""
    for tokenized in tokenize_records(kind, chat, records, max_length):
        if tokenized.refusal is not None:
            writer.refuse(tokenized.record["id"], tokenized.refusal)
        for index, labels in enumerate(tokenized.labels):
            part = slice(index * kind.rows_per_item, (index + 1) * kind.rows_per_item)
            num_truncated = sum(tokenized.is_cut[part])
            writer.append(tokenized.rows[part], labels, num_truncated=num_truncated)


@dataclass(frozen=True)
class TokenizedRecord:
    """A record and its rows, or why it can't be learnt from."""

    record: Mapping[str, Any]
    rows: Sequence[TokenizedChat] = ()
    uncut: Sequence[TokenizedChat] = ()
    """The rows as they were before they were cut, of a refused record too if it was rendered."""
    is_cut: Sequence[bool] = ()
    """Whether each row was cut."""
    labels: Sequence[tuple[float, ...]] = ()
    """Of each item."""
    refusal: str | None = None
    """Reason code of a record without rows."""


def tokenize_records(
    kind: RecordKind,
    chat: ChatTokenizer,
    records: Iterable[Mapping[str, Any]],
    max_length: int,
) -> Iterator[TokenizedRecord]:
    """Yield the records in their order, tokenised at once, checked and cut."""
    rendered: list[tuple[Mapping[str, Any], list[RenderedChat], DataError | None]] = []
    for record in records:
        try:
            rendered.append((record, kind.render(chat, record), None))
        except DataError as error:
            rendered.append((record, [], error))
    tokenized = iter(chat.tokenize([text for _, chats, _ in rendered for text in chats]))
    for record, chats, refusal in rendered:
        rows = [next(tokenized) for _ in chats]
        try:
            if refusal is not None:
                raise refusal
            labels = kind.labels(record)
            for text, row in zip(chats, rows, strict=True):
                chat.check(text, row)
            cut = [kind.fit(row, max_length) for row in rows]
            kind.check(cut)
        except DataError as error:
            yield TokenizedRecord(record, uncut=rows, refusal=error.reason or "bad_row")
        else:
            is_cut = [len(row.tokens_T) > max_length for row in rows]
            yield TokenizedRecord(record, cut, rows, is_cut, labels)


def rows_digest(dataset: Path, split: Split, kind: RecordKind, model: Path, max_length: int) -> str:
    """Return the SHA-256 of all that determines the rows: shards, tokenizer, kind and length."""
    rows = f"{kind.name} {kind.form} {kind.columns} {kind.rows_per_item}"
    digest = hashlib.sha256(f"{_FORMAT} {rows} {split} {max_length}".encode())
    files = [*shards(dataset, split), *(model / name for name in TOKENIZER_FILES)]
    for path in files:
        if path.is_file():
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            digest.update(f"{path.name} {content}\n".encode())
    return digest.hexdigest()
