"""Attention over keys and values that were computed before: shared roots and decoding.

Each class answers for one forward pass through all layers. The T tokens of the pass are one packed
sequence, so every other layer sees no padding.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from alignflow.training.megatron.attention import AttentionPlan, PackedAttention
from alignflow.training.megatron.trees import TreeBatch

KeysValues = tuple[Tensor, Tensor]
"""Keys and values of one layer, [1, key-value heads, tokens, head_dim] each."""


@dataclass
class RootAttention(AttentionPlan):
    """Causal attention over one text whose keys and values are kept by layer."""

    kept: dict[int, KeysValues] = field(default_factory=dict)

    def attend(self, layer: PackedAttention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend causally and keep keys and values."""
        self.kept[layer.layer_number] = (key, value)
        return layer.attend_causally(query, key, value)


@dataclass
class TreeAttention(AttentionPlan):
    """Attention of packed trees: to the root, to the own prefix, to the own branch."""

    spans: Sequence[slice] = ()
    visible: Sequence[Tensor] = ()
    """[tokens, root + tokens] bool a span, True where a query looks."""
    root: dict[int, KeysValues] = field(default_factory=dict)

    def attend(self, layer: PackedAttention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend within each tree and to the root."""
        attended = []
        for span, visible in zip(self.spans, self.visible, strict=True):
            keys, values = key[:, :, span], value[:, :, span]
            if self.root:
                root_keys, root_values = self.root[layer.layer_number]
                keys = torch.cat((root_keys, keys), dim=2)
                values = torch.cat((root_values, values), dim=2)
            attended.append(_attend(layer, query[:, :, span], keys, values, visible))
        return torch.cat(attended, dim=2)


def tree_attention(
    batch: TreeBatch, root: dict[int, KeysValues], window: int | None, device: torch.device
) -> TreeAttention:
    """Return the attention of a batch of trees, its masks worked out once for all layers.

    Args:
        batch: The trees; only their shape is looked at.
        root: Keys and values of the batch's root by layer; empty without a root.
        window: Keys that a query sees, itself included; None sees all before it.
        device: Where the model lies.
    """
    positions_T = batch.positions_T.to(device)
    root_positions = torch.arange(len(batch.root), device=device)
    visible = []
    for span in batch.spans:
        at_Q = positions_T[span.start : span.stop]
        own_QQ = span.visible().to(device)
        visible_QK = F.pad(own_QQ, (len(root_positions), 0), value=True)
        if window is not None:
            visible_QK &= at_Q[:, None] - torch.cat((root_positions, at_Q)) < window
        visible.append(visible_QK)
    return TreeAttention(
        spans=[slice(span.start, span.stop) for span in batch.spans], visible=visible, root=root
    )


class DecodingCache:
    """Keys and values of B growing sequences, by layer, in slots of `max_length` tokens."""

    def __init__(self, num_rows: int, max_length: int) -> None:
        self._shape = (num_rows, max_length)
        self._layers: dict[int, KeysValues] = {}

    def layer(self, number: int, like: Tensor) -> KeysValues:
        """Return the slots of a layer, [B, key-value heads, max_length, head_dim] each."""
        if number not in self._layers:
            num_rows, max_length = self._shape
            shape = (num_rows, like.size(1), max_length, like.size(3))
            self._layers[number] = (like.new_zeros(shape), like.new_zeros(shape))
        return self._layers[number]

    def keep(self, rows: Tensor) -> None:
        """Keep only these rows, [b] int64, in this order."""
        self._shape = (len(rows), self._shape[1])
        for number, (keys, values) in self._layers.items():
            self._layers[number] = (keys[rows], values[rows])


@dataclass
class PrefillAttention(AttentionPlan):
    """Causal attention within each packed prompt; fills the cache."""

    starts: Sequence[int] = ()
    """B + 1 prompt boundaries."""
    cache: DecodingCache = field(default_factory=lambda: DecodingCache(0, 0))

    def attend(self, layer: PackedAttention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend within each prompt and put its keys and values into its slot."""
        slot_keys, slot_values = self.cache.layer(layer.layer_number, key)
        attended = []
        for row, (start, stop) in enumerate(pairwise(self.starts)):
            keys, values = key[0, :, start:stop], value[0, :, start:stop]
            slot_keys[row, :, : stop - start] = keys
            slot_values[row, :, : stop - start] = values
            attended.append(
                layer.attend_causally(query[:, :, start:stop], keys[None], values[None])
            )
        return torch.cat(attended, dim=2)


@dataclass
class StepAttention(AttentionPlan):
    """One new token a row: its key and value enter the cache, its query sees the whole row."""

    lengths_B: Tensor = field(default_factory=lambda: torch.empty(0))
    """[B] int64, tokens of each row before this one."""
    visible_BL: Tensor = field(default_factory=lambda: torch.empty(0))
    """[B, longest] bool, True at the tokens of each row, the new one included."""
    cache: DecodingCache = field(default_factory=lambda: DecodingCache(0, 0))

    def attend(self, layer: PackedAttention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend from one token a row to the row."""
        slot_keys, slot_values = self.cache.layer(layer.layer_number, key)
        rows_B = torch.arange(len(self.lengths_B), device=query.device)
        slot_keys[rows_B, :, self.lengths_B] = key[0].transpose(0, 1)
        slot_values[rows_B, :, self.lengths_B] = value[0].transpose(0, 1)
        longest = self.visible_BL.size(1)
        attended = _attend(
            layer,
            query.transpose(0, 2),
            slot_keys[:, :, :longest],
            slot_values[:, :, :longest],
            self.visible_BL[:, None, None],
        )
        return attended.transpose(0, 2)


def step_attention(cache: DecodingCache, lengths_B: Tensor, window: int | None) -> StepAttention:
    """Return the attention of one decoding step over rows of these lengths, [B] int64."""
    longest = int(lengths_B.max()) + 1
    distance_BL = lengths_B[:, None] - torch.arange(longest, device=lengths_B.device)
    visible_BL = distance_BL >= 0
    if window is not None:
        visible_BL &= distance_BL < window
    return StepAttention(lengths_B=lengths_B, visible_BL=visible_BL, cache=cache)


def _attend(
    layer: PackedAttention, query: Tensor, key: Tensor, value: Tensor, visible: Tensor
) -> Tensor:
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=visible, scale=layer.softmax_scale, enable_gqa=True
    )
