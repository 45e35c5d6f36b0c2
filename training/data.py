"""From a dataset artifact to tokenised rows.

Rank 0 tokenises into the run folder, batch by batch; every rank maps the result, and a resumed job
finds it there. Long rows are cut at the end and counted. A row that can't be learnt from is refused
by name: its answer was cut away, its template makes the mask wrong, its two answers became equal.
"""

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from alignflow.data_validation.canonical import Split, read_tables, shards
from alignflow.errors import DataError
from alignflow.jobs.worker import raise_if_stop_requested
from alignflow.training.chat import ChatTokenizer, RenderedChat, TokenizedChat
from alignflow.training.megatron.architecture import check_positions
from alignflow.training.rows import RowWriter, TokenRows
from alignflow.training.tokenizer import TOKENIZER_FILES

_BATCH_RECORDS = 512
_FORMAT = "shared-prefixes"
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


def _render_prompt(chat: ChatTokenizer, record: Mapping[str, Any]) -> list[RenderedChat]:
    return [chat.render_prompt(record["prompt"])]


def _check_single_row(rows: Sequence[TokenizedChat]) -> None:
    """A demonstration or a prompt is one row: there is nothing it must fit to."""


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


DEMONSTRATIONS = RecordKind("sft", ("messages",), 1, _render_demonstration, _check_single_row)
"""Conversations of which every assistant turn is learnt."""

PREFERENCES = RecordKind(
    "preference", ("prompt", "chosen", "rejected"), 2, _render_pair, _check_pair
)
"""Pairs of answers to one prompt; in each the answer is learnt, the prompt is not."""

PROMPTS = RecordKind("preference", ("prompt",), 1, _render_prompt, _check_single_row, _uncut)
"""The prompts of pairs, ready to be answered; nothing of them is learnt."""


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
    digest = _digest(dataset, split, kind, model, max_length)
    folder = cache / split
    rows = TokenRows.open(folder, digest=digest, rows_per_item=kind.rows_per_item)
    if rows is None and is_writer:
        _tokenize(dataset, split, kind, ChatTokenizer.load(model), max_length, folder, digest)
    while rows is None:
        raise_if_stop_requested()
        time.sleep(0.05)
        rows = TokenRows.open(folder, digest=digest, rows_per_item=kind.rows_per_item)
    if split == "train" and not len(rows):
        raise DataError(_nothing_left(dataset, rows))
    return rows


def _nothing_left(dataset: Path, rows: TokenRows) -> str:
    counts = sorted(rows.summary.reasons.items(), key=lambda item: -item[1])
    refused = ", ".join(f"{count} for {reason}" for reason, count in counts)
    return f"{dataset}: no training row is left to learn from (refused: {refused or 'none'})."


def _tokenize(
    dataset: Path,
    split: Split,
    kind: RecordKind,
    chat: ChatTokenizer,
    max_length: int,
    folder: Path,
    digest: str,
) -> None:
    with RowWriter(folder, digest) as writer:
        for batch in read_tables(dataset, split, batch_rows=_BATCH_RECORDS):
            raise_if_stop_requested()
            missing = [name for name in ("id", *kind.columns) if name not in batch.schema.names]
            if missing:
                raise DataError(
                    f"{dataset}: this is no {kind.name} dataset, it has no column {missing[0]!r}; "
                    f"ingest it with --kind {kind.name}."
                )
            _add_records(writer, kind, chat, batch.to_pylist(), max_length)


def _add_records(
    writer: RowWriter,
    kind: RecordKind,
    chat: ChatTokenizer,
    records: Iterable[Mapping[str, Any]],
    max_length: int,
) -> None:
    """Tokenise a batch of records at once; what can't be learnt from is refused by name."""
    rendered: list[tuple[str, list[RenderedChat]]] = []
    for record in records:
        try:
            rendered.append((record["id"], kind.render(chat, record)))
        except DataError as error:
            writer.refuse(record["id"], error.reason or "bad_row")
    tokenized = iter(chat.tokenize([text for _, chats in rendered for text in chats]))
    for record_id, chats in rendered:
        rows = [next(tokenized) for _ in chats]
        try:
            for text, row in zip(chats, rows, strict=True):
                chat.check(text, row)
            cut = [kind.fit(row, max_length) for row in rows]
            kind.check(cut)
        except DataError as error:
            writer.refuse(record_id, error.reason or "bad_row")
            continue
        writer.append(cut, num_truncated=sum(len(row.tokens_T) > max_length for row in rows))


def _digest(dataset: Path, split: Split, kind: RecordKind, model: Path, max_length: int) -> str:
    """Return the SHA-256 of all that determines the tokens: shards, tokenizer, kind and length."""
    digest = hashlib.sha256(f"{_FORMAT} {kind.name} {split} {max_length}".encode())
    files = [*shards(dataset, split), *(model / name for name in TOKENIZER_FILES)]
    for path in files:
        if path.is_file():
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            digest.update(f"{path.name} {content}\n".encode())
    return digest.hexdigest()
