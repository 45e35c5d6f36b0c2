"""Pairs of answers to one prompt, as trees that a model is run over."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from alignflow.data_validation.canonical import column_names, read_split
from alignflow.evaluation.measures import Items
from alignflow.training.chat import ChatTokenizer, TokenizedChat
from alignflow.training.data import (
    RecordKind,
    TokenizedRecord,
    check_columns,
    tokenize_records,
)
from alignflow.training.megatron.trees import Branch, Tree

_BATCH_RECORDS = 512
_MAX_NAMED = 1000


@dataclass(frozen=True)
class Pairs:
    """Pairs that can be judged, and what became of the others."""

    trees: list[Tree]
    """A tree a pair: the prompt, then the chosen and the rejected response."""
    items: Items
    """The pairs by their texts; those of one prompt are of one source."""
    records: list[Mapping[str, Any]]
    """What each was made of."""
    num_truncated: int
    """Rows that were cut at the longest length."""
    refused: list[dict[str, str]]
    """`id` and `reason` of pairs that can't be judged, the first 1000 of them."""
    num_refused: int
    """All of them."""


def held_out_pairs(
    dataset: Path, kind: RecordKind, chat: ChatTokenizer, *, max_length: int, limit: int | None
) -> Pairs:
    """Return the held-out pairs of a dataset artifact, at most `limit` of them.

    Raises:
        DataError: The dataset can't be read, or holds no pairs.
    """
    if names := column_names(dataset):
        check_columns(dataset, kind, sorted(names))
    return encode_pairs(
        read_split(dataset, "held_out"), kind, chat, max_length=max_length, limit=limit
    )


def encode_pairs(
    records: Iterable[Mapping[str, Any]],
    kind: RecordKind,
    chat: ChatTokenizer,
    *,
    max_length: int,
    limit: int | None = None,
) -> Pairs:
    """Return the first records that can be judged, cut at `max_length` tokens, as trees."""
    refused: list[dict[str, str]] = []
    judged = list(islice(_judgeable(records, kind, chat, max_length, refused), limit))
    return Pairs(
        trees=[_tree(*pair.rows) for pair in judged],
        items=Items.of(
            ([pair.record[name] for name in kind.columns] for pair in judged),
            sources=(pair.record["prompt"] for pair in judged),
        ),
        records=[pair.record for pair in judged],
        num_truncated=sum(sum(pair.is_cut) for pair in judged),
        refused=refused[:_MAX_NAMED],
        num_refused=len(refused),
    )


def _judgeable(
    records: Iterable[Mapping[str, Any]],
    kind: RecordKind,
    chat: ChatTokenizer,
    max_length: int,
    refused: list[dict[str, str]],
) -> Iterator[TokenizedRecord]:
    """Yield the records that have rows, and add the others to those refused."""
    remaining = iter(records)
    while batch := list(islice(remaining, _BATCH_RECORDS)):
        for pair in tokenize_records(kind, chat, batch, max_length):
            if pair.refusal is None:
                yield pair
            else:
                refused.append({"id": pair.record["id"], "reason": pair.refusal})


def _tree(chosen: TokenizedChat, rejected: TokenizedChat) -> Tree:
    prompt_length = int(chosen.is_learnt_T.argmax())
    branches = [
        Branch(row.tokens_T[prompt_length:].tolist(), row.is_learnt_T[prompt_length:].tolist())
        for row in (chosen, rejected)
    ]
    return Tree(chosen.tokens_T[:prompt_length].tolist(), branches)
