"""Drawing tokens from a model's distributions, so that a draw can be repeated.

A draw turns one uniform number into a token by the distribution's inverse. The numbers of a
response follow from a key of its own, such as (seed, step, prompt, sample): what is sampled depends
on nothing else, whichever rank samples it and beside whatever other responses.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_BLOCK = 256
"""Weights of a block in `_invert`."""


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn: temperature first, then the k likeliest, then the likeliest p."""

    temperature: float = 1.0
    """Logits are divided by it, > 0."""
    top_k: int | None = None
    """Only the k likeliest tokens are drawn; None draws from all."""
    top_p: float = 1.0
    """Only the fewest, likeliest tokens that together have this probability are drawn."""


def uniforms(key: Sequence[int], number: int) -> Tensor:
    """Return numbers in [0, 1) that follow from the key alone, [number] float64."""
    return torch.from_numpy(np.random.default_rng(list(key)).random(number))


def draw(
    logits_BV: Tensor,
    uniforms_B: Tensor,
    sampling: Sampling,
    *,
    excluded: Collection[int] = (),
) -> tuple[Tensor, Tensor]:
    """Return B tokens, [B] int64, and their log-probabilities in nats, [B] float32.

    The log-probabilities are those at the temperature, before any token is left out: what a
    training step computes for these tokens too.

    Args:
        logits_BV: [B, V] float32.
        uniforms_B: [B] float64 in [0, 1).
        sampling: How to draw.
        excluded: Tokens that are not drawn, as if they had no probability.
    """
    logps_BV = (logits_BV / sampling.temperature).log_softmax(-1)
    drawn_BV = logps_BV
    if excluded:
        drawn_BV = logps_BV.index_fill(
            1, torch.tensor(sorted(excluded), device=logps_BV.device), -torch.inf
        )
    if sampling.top_k is None and sampling.top_p == 1:
        tokens_B = _invert(drawn_BV.exp(), uniforms_B)
    else:
        sorted_BV, order_BV = drawn_BV.sort(dim=-1, descending=True, stable=True)
        places_B = _invert(_likeliest(sorted_BV.double().exp(), sampling), uniforms_B)
        tokens_B = order_BV.gather(1, places_B[:, None])[:, 0]
    return tokens_B, logps_BV.gather(1, tokens_B[:, None])[:, 0]


def _likeliest(probs_BV: Tensor, sampling: Sampling) -> Tensor:
    """Set to 0 what is left out of probabilities that fall from left to right."""
    probs_BV = probs_BV[:, : sampling.top_k]
    # A token stays if those before it have not reached top_p yet: the first one always does.
    before_BV = (probs_BV / probs_BV.sum(-1, keepdim=True)).cumsum(-1).roll(1, dims=-1)
    before_BV[:, 0] = 0
    return probs_BV.where(before_BV < sampling.top_p, 0)


def _invert(weights_BV: Tensor, uniforms_B: Tensor) -> Tensor:
    """Return the places, [B] int64, at which the cumulated weights pass the uniform numbers.

    Only block sums are cumulated over the whole vocabulary, and the weights of one block: on a CPU
    a sum takes a fraction of the time of a cumulated one, or of a copy in float64.
    """
    num_rows, num_weights = weights_BV.shape
    num_blocks = math.ceil(num_weights / _BLOCK)
    filled_BV = F.pad(weights_BV, (0, num_blocks * _BLOCK - num_weights))
    blocks_BKW = filled_BV.view(num_rows, num_blocks, _BLOCK)
    until_BK1 = F.pad(blocks_BKW.sum(-1, dtype=torch.float64).cumsum(-1), (1, 0))
    points_B1 = uniforms_B[:, None] * until_BK1[:, -1:]
    # Past the point, not at it: a place of weight 0 is never returned.
    block_B1 = torch.searchsorted(until_BK1, points_B1, right=True) - 1
    rows_B = torch.arange(num_rows, device=weights_BV.device)
    within_BW = blocks_BKW[rows_B, block_B1[:, 0]].double().cumsum(-1)
    rest_B1 = points_B1 - until_BK1.gather(1, block_B1)
    place_B1 = torch.searchsorted(within_BW, rest_B1, right=True)
    # Summed in another order, the block may end before the point: then it is its last weight.
    last_B1 = torch.searchsorted(within_BW, within_BW[:, -1:].contiguous())
    return (block_B1 * _BLOCK + torch.minimum(place_B1, last_B1))[:, 0]
