"""Core attention where Transformer Engine is not: packed rows in training, a cache in decoding."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from alignflow.training.batch import PackedBatch
from alignflow.training.megatron.core import MegatronModule, PackedSeqParams, TransformerConfig


@dataclass
class AttentionPlan(PackedSeqParams, ABC):  # type: ignore[misc]
    """Which tokens of a sequence attend to which, worked out once for all layers.

    Megatron hands its `packed_seq_params` through to the core attention. The format is not `thd`,
    so that the rotary embedding is applied to the whole sequence, by the positions given.
    """

    qkv_format: str = "sbhd"

    @abstractmethod
    def attend(self, layer: "PackedAttention", query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Return the attended values, [B, heads, queries, head_dim].

        Args:
            layer: Holds the layer's number, scale and window.
            query: [B, heads, queries, head_dim].
            key: [B, key_value_heads, keys, head_dim].
            value: As the keys.
        """


@dataclass
class PackedRows(AttentionPlan):
    """Rows one after another; each is causal and knows nothing of the others."""

    starts: tuple[int, ...] = ()
    """R + 1 row boundaries."""

    @classmethod
    def of(cls, batch: PackedBatch) -> "PackedRows":
        """Return the pattern of a packed batch."""
        return cls(starts=tuple(batch.row_starts_R1.tolist()))

    def attend(self, layer: "PackedAttention", query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """See `AttentionPlan`."""
        rows = [
            layer.attend_causally(query[:, :, a:b], key[:, :, a:b], value[:, :, a:b])
            for a, b in pairwise(self.starts)
        ]
        return torch.cat(rows, dim=2)


class PackedAttention(MegatronModule):  # type: ignore[misc]
    """Takes the place of `DotProductAttention` in a layer spec.

    Grouped queries share their keys without copies. Without an `AttentionPlan` the B sequences
    of a batch are causal, and the last query stands at the last key.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: Any = None,
        attention_type: str = "self",
        softmax_scale: float | None = None,
        **_: Any,
    ) -> None:
        super().__init__(config=config)
        self.layer_number = layer_number
        self.softmax_scale = softmax_scale
        window = config.window_size
        self.window = None if window is None else window[0] + 1

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None = None,
        attn_mask_type: Any = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> Tensor:
        """Return the attended values, [queries, B, heads * head_dim].

        Args:
            query: [queries, B, heads, head_dim].
            key: [keys, B, key_value_heads, head_dim].
            value: As the keys.
            attention_mask: Unused, like the next two: attention is causal or follows a plan.
            attn_mask_type: Unused.
            attention_bias: Unused.
            packed_seq_params: The `AttentionPlan` of a packed sequence; B is 1.
        """
        query, key, value = (t.permute(1, 2, 0, 3) for t in (query, key, value))
        if isinstance(packed_seq_params, AttentionPlan):
            attended = packed_seq_params.attend(self, query, key, value)
        else:
            attended = self.attend_causally(query, key, value)
        return attended.permute(2, 0, 1, 3).flatten(2)

    def attend_causally(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Return the attended values of B sequences within the model's window, shaped as `query`.

        Args:
            query: [B, heads, queries, head_dim]; the last stands at the last key.
            key: [B, key_value_heads, keys, head_dim].
            value: As the keys.
        """
        queries, keys = query.size(2), key.size(2)
        is_plain = queries in (1, keys) and (self.window is None or keys <= self.window)
        return F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=None if is_plain else self._visible(queries, keys, query.device),
            is_causal=is_plain and queries == keys,
            scale=self.softmax_scale,
            enable_gqa=True,
        )

    def _visible(self, queries: int, keys: int, device: torch.device) -> Tensor:
        """Return [queries, keys] bool, True where a query looks."""
        at_Q = torch.arange(keys - queries, keys, device=device)
        distance_QK = at_Q[:, None] - torch.arange(keys, device=device)
        visible_QK = distance_QK >= 0
        return visible_QK if self.window is None else visible_QK & (distance_QK < self.window)
