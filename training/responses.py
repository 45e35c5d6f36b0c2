"""Batches of responses that are judged one by one, and responses to prompts that aren't theirs."""

import hashlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alignflow.errors import DataError
from alignflow.training.batch import PackedBatch
from alignflow.training.chat import TokenizedChat
from alignflow.training.data import written_once
from alignflow.training.packing import Items, pack
from alignflow.training.rows import RowWriter, TokenRows


@dataclass(frozen=True)
class ReferencedBatch(PackedBatch):
    """A packed batch of B responses with what the reference model gives them."""

    response_rows_B: Tensor
    """[B] int64, rows of the responses."""
    reference_B: Tensor
    """[B] float32, log-probability of each response, in nats."""


@dataclass(frozen=True)
class ResponseBatch(ReferencedBatch):
    """A batch of responses that are known to be good or bad."""

    is_desirable_B: Tensor
    """[B] bool."""


def pack_referenced(rows: TokenRows, items: Items, reference_logps: Tensor) -> ReferencedBatch:
    """Return packed responses with their reference log-probabilities.

    Args:
        rows: Tokenised responses, one an item.
        items: Responses to pack.
        reference_logps: [rows] float32, log-probability of each response, in nats.
    """
    return ReferencedBatch(
        **vars(pack(rows, items)),
        response_rows_B=torch.arange(len(items)),
        reference_B=reference_logps[torch.from_numpy(items)],
    )


def pack_responses(rows: TokenRows, items: Items, reference_logps: Tensor) -> ResponseBatch:
    """Return packed responses with their labels besides; arguments as in `pack_referenced`."""
    return ResponseBatch(
        **vars(pack_referenced(rows, items, reference_logps)),
        is_desirable_B=torch.from_numpy(rows.labels_IL[items, 0] == 1),
    )


def mismatched_rows(
    rows: TokenRows, folder: Path, *, max_length: int, is_writer: bool
) -> TokenRows:
    """Return each prompt with the response to another prompt of the set, in the set's order.

    The responses are those half a set away, so that each is taken once, as often as it is judged;
    where that one answers the same prompt, the next one that doesn't.

    Args:
        rows: Tokenised responses, one an item.
        folder: Where the new rows lie; all ranks see it and it outlives a killed job.
        max_length: Tokens a row is cut at, that of `rows`.
        is_writer: Whether this process writes them; true for exactly one.

    Raises:
        DataError: All prompts are the same.
    """
    digest = hashlib.sha256(f"mismatched {rows.summary.digest}".encode()).hexdigest()
    write = partial(_write_mismatched, rows, max_length)
    return written_once(folder, digest, 1, write, is_writer=is_writer)


def _write_mismatched(rows: TokenRows, max_length: int, writer: RowWriter) -> None:
    for index in range(len(rows)):
        prompt_T, _ = _parts(rows.row(index))
        _, response = _parts(rows.row(_other(rows, index)))
        # A prompt leaves room for a token of its own response, and so of any other.
        row = TokenizedChat(
            np.concatenate([prompt_T, response.tokens_T])[:max_length],
            np.concatenate([np.zeros(len(prompt_T), np.bool_), response.is_learnt_T])[:max_length],
        )
        writer.append([row], num_truncated=len(prompt_T) + len(response.tokens_T) > max_length)


def _other(rows: TokenRows, index: int) -> int:
    """Return the item whose response is put to the prompt of an item."""
    prompt_T, _ = _parts(rows.row(index))
    for step in range(len(rows)):
        other = (index + len(rows) // 2 + step) % len(rows)
        if not np.array_equal(prompt_T, _parts(rows.row(other))[0]):
            return other
    raise DataError(
        f"all {len(rows)} rows of a split have the same prompt, but the KL term of kto puts "
        "responses to other prompts; add rows, or hold more or none of them out."
    )


def _parts(row: TokenizedChat) -> tuple[NDArray[np.int32], TokenizedChat]:
    """Return a row's prompt, and its response with all that follows."""
    begin = int(row.is_learnt_T.argmax())
    return row.tokens_T[:begin], TokenizedChat(row.tokens_T[begin:], row.is_learnt_T[begin:])
