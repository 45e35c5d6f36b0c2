"""Batches of SteerLM 2.0: the responses to a prompt side by side, with what they are weighed by."""

from dataclasses import dataclass

import torch
from torch import Tensor

from alignflow.training.batch import PackedBatch
from alignflow.training.losses import SummedLoss, steerlm2_loss
from alignflow.training.packing import Items, pack
from alignflow.training.reference import answer_logps
from alignflow.training.rows import TokenRows


@dataclass(frozen=True)
class WeighedBatch(PackedBatch):
    """A packed batch of P prompts with K responses each, and what their weights are made of."""

    sampler_PK: Tensor
    """[P, K] float32, log-probability of each response under the model that sampled it."""
    target_PK: Tensor
    """[P, K] float32, log P(a|x,y) + log P(y|x) of each response."""


def pack_weighed(
    rows: TokenRows, items: Items, *, sampler_logps: Tensor, target_PK: Tensor
) -> WeighedBatch:
    """Return packed prompts with their responses, and what the weights are made of.

    Args:
        rows: The responses, K rows an item.
        items: Prompts to pack.
        sampler_logps: [rows] float32, log-probability of each response when it was sampled.
        target_PK: [all items, K], log P(a|x,y) + log P(y|x).
    """
    prompts = torch.from_numpy(items)
    sampler_PK = sampler_logps.view(len(rows), rows.rows_per_item)
    return WeighedBatch(
        **vars(pack(rows, items)),
        sampler_PK=sampler_PK[prompts],
        target_PK=target_PK[prompts].float(),
    )


def weighed_loss(logps_N: Tensor, batch: WeighedBatch) -> SummedLoss:
    """Return the loss of a microbatch.

    Args:
        logps_N: [N] float32, the policy's log-probabilities of the scored tokens.
        batch: The prompts with their responses.
    """
    policy_R = answer_logps(logps_N, batch)
    # A batch without items has a row nevertheless.
    policy_PK = policy_R[: batch.target_PK.numel()].view_as(batch.target_PK)
    return steerlm2_loss(policy_PK, batch.sampler_PK, batch.target_PK)
