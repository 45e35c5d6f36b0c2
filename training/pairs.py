"""Batches of pairs: two answers to one prompt, side by side in a microbatch."""

from dataclasses import dataclass

import torch
from torch import Tensor

from alignflow.training.batch import PackedBatch
from alignflow.training.packing import Items, pack
from alignflow.training.rows import TokenRows


@dataclass(frozen=True)
class PairBatch(PackedBatch):
    """A packed batch of B pairs."""

    chosen_rows_B: Tensor
    """[B] int64, rows of the chosen answers."""
    rejected_rows_B: Tensor
    """[B] int64, rows of the rejected answers."""
    labels_BL: Tensor
    """[B, L] float32, the numbers that the pairs are labelled with, see their kind."""


@dataclass(frozen=True)
class ReferencedPairBatch(PairBatch):
    """A batch of pairs with what the reference model gives them."""

    reference_chosen_B: Tensor
    """[B] float32, log-probability of each chosen answer, in nats."""
    reference_rejected_B: Tensor
    """[B] float32, the same of each rejected answer."""


def pack_pairs(rows: TokenRows, items: Items) -> PairBatch:
    """Return the pairs packed one after another, each chosen answer before its rejected one."""
    chosen_rows_B = torch.arange(0, 2 * len(items), 2)
    return PairBatch(
        **vars(pack(rows, items)),
        chosen_rows_B=chosen_rows_B,
        rejected_rows_B=chosen_rows_B + 1,
        labels_BL=torch.from_numpy(rows.labels_IL[items]),
    )


def pack_referenced_pairs(
    rows: TokenRows, items: Items, reference_logps: Tensor
) -> ReferencedPairBatch:
    """Return packed pairs with their reference log-probabilities.

    Args:
        rows: Tokenised pairs.
        items: Pairs to pack.
        reference_logps: [rows] float32, log-probability of each row's answer, in nats.
    """
    chosen_rows = torch.from_numpy(2 * items)
    return ReferencedPairBatch(
        **vars(pack_pairs(rows, items)),
        reference_chosen_B=reference_logps[chosen_rows],
        reference_rejected_B=reference_logps[chosen_rows + 1],
    )
