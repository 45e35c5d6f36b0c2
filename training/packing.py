"""Data order and packing: which items make a step, which rank gets them, how they lie in a batch.

Global batches depend on the seed alone, never on the layout, so that a run on one process and a run
on many see the same data. An item is never split: both rows of a pair share a microbatch.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from alignflow.training.batch import PackedBatch
from alignflow.training.config import TrainerConfig
from alignflow.training.rows import TokenRows

Items = NDArray[np.int64]
"""Item indices."""


@dataclass(frozen=True)
class DataOrder:
    """Which items each optimizer step takes: every epoch is a permutation of its own."""

    num_items: int
    global_batch_size: int
    num_epochs: int
    seed: int
    max_steps: int | None = None

    @classmethod
    def of(cls, config: TrainerConfig, num_items: int) -> "DataOrder":
        """Return the order that a config gives to so many items."""
        return cls(
            num_items, config.global_batch_size, config.num_epochs, config.seed, config.max_steps
        )

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch; the last one takes what is left, be it less than a batch."""
        return math.ceil(self.num_items / self.global_batch_size)

    @property
    def num_steps(self) -> int:
        """Steps of the whole run."""
        steps = self.num_epochs * self.steps_per_epoch
        return steps if self.max_steps is None else min(steps, self.max_steps)

    def items(self, step: int) -> Items:
        """Return the items of a step, counted from 0."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        order = _permutation(self.num_items, self.seed, epoch)
        return order[batch * self.global_batch_size : (batch + 1) * self.global_batch_size]


def split_over_ranks(items: Items, lengths: NDArray[np.int64], num_ranks: int) -> list[Items]:
    """Return the items of each data-parallel rank, with about the same number of tokens.

    The longest item goes first, always to the rank with the fewest tokens so far.

    Args:
        items: Items of a global batch; each rank's come out longest first.
        lengths: [all items] tokens of each.
        num_ranks: Number of parts; one may be empty where items are few.
    """
    loads = [0] * num_ranks
    parts: list[list[int]] = [[] for _ in range(num_ranks)]
    for item in _longest_first(items, lengths):
        rank = loads.index(min(loads))
        parts[rank].append(item)
        loads[rank] += int(lengths[item])
    return [np.array(part, dtype=np.int64) for part in parts]


def split_into_microbatches(
    items: Items, lengths: NDArray[np.int64], max_tokens: int
) -> list[Items]:
    """Return the items packed into microbatches of at most `max_tokens` tokens.

    First fit, longest first; an item that is longer by itself has a microbatch to itself.
    """
    bins: list[list[int]] = []
    room: list[int] = []
    for item in _longest_first(items, lengths):
        length = int(lengths[item])
        fitting = next((number for number, left in enumerate(room) if length <= left), None)
        if fitting is None:
            bins.append([])
            room.append(max_tokens)
            fitting = len(bins) - 1
        bins[fitting].append(item)
        room[fitting] -= length
    return [np.array(part, dtype=np.int64) for part in bins]


def pack(rows: TokenRows, items: Items) -> PackedBatch:
    """Return the rows of the items packed one after another, what the rows of an item share once.

    Without items it is one token that scores nothing: a rank whose share of a small global batch is
    empty runs it, because the other ranks wait for it in the collectives.
    """
    if not len(items):
        return _empty_batch()
    chats = [rows.row(index) for index in rows.rows_of(items)]
    lengths_R = np.array([len(chat.tokens_T) for chat in chats], dtype=np.int64)
    starts_R1 = np.concatenate([[0], np.cumsum(lengths_R)])
    tokens_S = np.concatenate([chat.tokens_T for chat in chats]).astype(np.int64)
    positions_S = np.arange(len(tokens_S)) - np.repeat(starts_R1[:-1], lengths_R)
    row_tokens_S, first_T = _share(rows, items, lengths_R)
    # A learnt token is scored where it is predicted: one position earlier in its row.
    learnt_N = np.flatnonzero(np.concatenate([chat.is_learnt_T for chat in chats]))
    return PackedBatch(
        tokens_T=torch.from_numpy(tokens_S[first_T]),
        positions_T=torch.from_numpy(positions_S[first_T]),
        row_tokens_S=torch.from_numpy(row_tokens_S),
        row_starts_R1=torch.from_numpy(starts_R1.astype(np.int32)),
        score_index_N=torch.from_numpy(row_tokens_S[learnt_N - 1]),
        targets_N=torch.from_numpy(tokens_S[learnt_N]),
        score_row_N=torch.from_numpy(np.searchsorted(starts_R1, learnt_N, side="right") - 1),
        row_last_R=torch.from_numpy(row_tokens_S[starts_R1[1:] - 1]),
    )


@lru_cache(maxsize=2)
def _permutation(num_items: int, seed: int, epoch: int) -> Items:
    return np.random.default_rng([seed, epoch]).permutation(num_items)


def _longest_first(items: Items, lengths: NDArray[np.int64]) -> list[int]:
    return [int(item) for item in items[np.argsort(-lengths[items], kind="stable")]]


def _share(
    rows: TokenRows, items: Items, lengths_R: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return where among the T each of the S lies, and which of the S each of the T is first."""
    own, first, start = [], 0, 0
    for number, length in enumerate(lengths_R):
        item, row = divmod(number, rows.rows_per_item)
        shared = int(rows.shared_I[items[item]]) if row else 0
        first = first if row else start
        own.append(np.r_[first : first + shared, start + shared : start + length])
        start += length
    # Each token of a row is named by the first of the S that is the same token.
    first_T, row_tokens_S = np.unique(np.concatenate(own), return_inverse=True)
    return row_tokens_S, first_T


def _empty_batch() -> PackedBatch:
    nothing = torch.empty(0, dtype=torch.int64)
    return PackedBatch(
        tokens_T=torch.zeros(1, dtype=torch.int64),
        positions_T=torch.zeros(1, dtype=torch.int64),
        row_tokens_S=torch.zeros(1, dtype=torch.int64),
        row_starts_R1=torch.tensor([0, 1], dtype=torch.int32),
        score_index_N=nothing,
        targets_N=nothing,
        score_row_N=nothing,
        row_last_R=torch.zeros(1, dtype=torch.int64),
    )
