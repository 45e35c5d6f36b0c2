"""Core attention where Transformer Engine is not: packed rows in training, a cache in decoding."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from alignflow.training.batch import PackedBatch
from alignflow.training.megatron.core import (
    MegatronModule,
    PackedSeqParams,
    TransformerConfig,
    parallel_state,
    tensor_parallel,
)
from alignflow.training.megatron.kernels import EAGER, Kernels

RotateRows = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

# Up to this many tokens a backward by plain products beats that of torch's kernel on a CPU in bf16,
# and where its element-wise parts are compiled.
_SHORT_ROW = 160
_SHORT_ROW_COMPILED = 256
# A row joins a group if it fills at least this much of the group's padded length.
_MIN_FILL = 0.9


def _no_indices() -> Tensor:
    return torch.empty(0, dtype=torch.int64)


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
    """Rows one after another; each is causal and knows nothing of the others but what they share.

    Rows of about the same length are padded at their end and attended in one call: on a CPU, with
    rows of 80 tokens, forward and backward take 0.36 of the time of a call for each row. Padding
    needs no mask, since a causal query never sees what follows it.
    """

    groups: tuple[tuple[int, int], ...] = ()
    """Number of rows and padded length of each group."""
    source_P: Tensor = field(default_factory=_no_indices)
    """[P] int64, the packed token at each padded position; any token where there is none."""
    place_T: Tensor = field(default_factory=_no_indices)
    """[T] int64, the padded position of each packed token, in the first row that has it."""
    again_D: Tensor = field(default_factory=_no_indices)
    """[D] int64, the packed token of each place that a further row gives it."""
    place_D: Tensor = field(default_factory=_no_indices)
    """[D] int64, that padded position."""
    cos_TF: Tensor = field(default_factory=_no_indices)
    """[T, F], cosine of the angle by which channels f and F + f of each token turn."""
    sin_TF: Tensor = field(default_factory=_no_indices)
    """As the cosine."""

    @classmethod
    def of(cls, batch: PackedBatch) -> "PackedRows":
        """Return the plan of a packed batch."""
        bounds = batch.row_starts_R1.tolist()
        rows = sorted(((stop - start, start) for start, stop in pairwise(bounds)), reverse=True)
        groups: list[tuple[int, int]] = []
        source: list[Tensor] = []
        place_S = torch.empty(bounds[-1], dtype=torch.int64)
        num_padded = 0
        for length, start in rows:
            if not groups or length < _MIN_FILL * groups[-1][1]:
                groups.append((0, length))
            num_rows, padded_length = groups[-1]
            groups[-1] = (num_rows + 1, padded_length)
            within = torch.arange(padded_length)
            source.append(start + within.clamp(max=length - 1))
            place_S[start : start + length] = num_padded + within[:length]
            num_padded += padded_length
        device = batch.tokens_T.device
        row_tokens_S = batch.row_tokens_S.cpu()
        first_T, again = _first_and_further(row_tokens_S)
        return cls(
            groups=tuple(groups),
            source_P=row_tokens_S[torch.cat(source)].to(device),
            place_T=place_S[first_T].to(device),
            again_D=row_tokens_S[again].to(device),
            place_D=place_S[again].to(device),
        )

    def rotating(self, angles_TF: Tensor, dtype: torch.dtype) -> "PackedRows":
        """Return the plan that also rotates queries and keys.

        Args:
            angles_TF: [T, F] float32, by which channels f and F + f of each token turn.
            dtype: Of the queries and keys.
        """
        return replace(self, cos_TF=angles_TF.cos().to(dtype), sin_TF=angles_TF.sin().to(dtype))

    def attend(self, layer: "PackedAttention", query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend as `AttentionPlan` says, queries and keys not yet rotated."""
        sizes = [num_rows * length for num_rows, length in self.groups]
        query_T, key_T, value_T = (t[0].transpose(0, 1) for t in (query, key, value))
        rotate = layer.kernels.rotated_rows
        padded = [
            _PadRotated.apply(query_T, self, rotate).split(sizes),  # type: ignore[no-untyped-call]
            _PadRotated.apply(key_T, self, rotate).split(sizes),  # type: ignore[no-untyped-call]
            _Pad.apply(value_T, self).split(sizes),  # type: ignore[no-untyped-call]
        ]
        attended = []
        for group, *parts in zip(self.groups, *padded, strict=True):
            rows = [part.unflatten(0, group).transpose(1, 2) for part in parts]
            attended.append(layer.attend_causally(*rows).transpose(1, 2).flatten(0, 1))
        packed: Tensor = _Unpad.apply(torch.cat(attended), self.place_T)  # type: ignore[no-untyped-call]
        return packed.transpose(0, 1)[None]


def _first_and_further(row_tokens_S: Tensor) -> tuple[Tensor, Tensor]:
    """Return where among the S each of the T tokens comes first, [T], and all other places."""
    _, first_T = np.unique(row_tokens_S.numpy(), return_index=True)
    is_further_S = np.ones(len(row_tokens_S), dtype=np.bool_)
    is_further_S[first_T] = False
    return torch.from_numpy(first_T), torch.from_numpy(np.flatnonzero(is_further_S))


class _Pad(torch.autograd.Function):
    """Packed to padded, [T, ...] to [P, ...].

    The gradient of padding is 0, so that the backward is a plain copy and a sum over the few places
    that further rows give to shared tokens.
    """

    @staticmethod
    def forward(ctx: Any, packed: Tensor, plan: PackedRows) -> Tensor:
        ctx.plan = plan
        return packed.index_select(0, plan.source_P)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        plan = ctx.plan
        grad_T = grads[0].index_select(0, plan.place_T)
        grad_T.index_add_(0, plan.again_D, grads[0].index_select(0, plan.place_D))
        return grad_T, None


class _PadRotated(torch.autograd.Function):
    """As `_Pad`, rotated on the way; the gradient is rotated back."""

    @staticmethod
    def forward(ctx: Any, packed: Tensor, plan: PackedRows, rotate: RotateRows) -> Tensor:
        ctx.plan, ctx.rotate = plan, rotate
        return rotate(
            packed.detach(), plan.source_P, plan.cos_TF[plan.source_P], plan.sin_TF[plan.source_P]
        )

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        plan, rotate = ctx.plan, ctx.rotate
        grad_T: Tensor = rotate(grads[0], plan.place_T, plan.cos_TF, -plan.sin_TF)
        if len(plan.again_D):
            cos_DF, sin_DF = plan.cos_TF[plan.again_D], plan.sin_TF[plan.again_D]
            grad_T.index_add_(0, plan.again_D, rotate(grads[0], plan.place_D, cos_DF, -sin_DF))
        return grad_T, None, None


class _Unpad(torch.autograd.Function):
    """Padded to packed, [P, ...] to [T, ...]; gives padding the gradient 0."""

    @staticmethod
    def forward(ctx: Any, padded: Tensor, place_T: Tensor) -> Tensor:
        ctx.save_for_backward(place_T)
        ctx.num_padded = padded.size(0)
        return padded.index_select(0, place_T)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (place_T,) = ctx.saved_tensors
        grad_P = grads[0].new_zeros(ctx.num_padded, *grads[0].shape[1:])
        return grad_P.index_copy_(0, place_T, grads[0]), None


def _is_bf16_on_cpu(query: Tensor) -> bool:
    return query.device.type == "cpu" and query.dtype == torch.bfloat16


class _ShortRows(torch.autograd.Function):
    """Causal attention of short rows; the backward holds all of a row's scores at once.

    The backward of torch's CPU kernel is made for long rows: on 16 rows of 64 tokens, 9 heads and 3
    key-value heads of 64 channels it took 20 ms of one core, this one 8 ms. Of long rows the half
    of the scores that is masked costs more than is won.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float, kernels: Kernels
    ) -> Tensor:
        attended, log_sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, True, scale=scale
        )
        ctx.save_for_backward(query, key, value, attended, log_sums)
        ctx.scale, ctx.kernels = scale, kernels
        result: Tensor = attended
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, attended, log_sums = ctx.saved_tensors
        scale, kernels = ctx.scale, ctx.kernels
        (grad,) = grads
        # The query heads of a key-value head one under another: one product serves them all.
        shape = (query.size(0), key.size(1), -1, query.size(-1))
        stacked, grad_stacked = query.reshape(shape), grad.reshape(shape)
        # Of shapes that compiled functions needn't tell apart: one axis for all heads of all rows.
        length = key.size(2)
        by_head = (-1, length, length)
        # In float32 up to the probabilities, as in the forward; the products of their gradients
        # take bf16, as the kernel's do.
        scores = stacked.float() @ key.float().transpose(-1, -2)
        probs = kernels.attention_probabilities(
            scores.view(by_head), log_sums.reshape(-1, length), scale
        )
        grad_probs = grad_stacked @ value.transpose(-1, -2)
        grad_scores = kernels.score_gradients(
            probs,
            grad_probs.view(by_head),
            attended.reshape(-1, length, query.size(-1)),
            grad_stacked.view(-1, length, query.size(-1)),
            scale,
        ).view_as(scores)
        grad_value = probs.to(grad.dtype).view_as(scores).transpose(-1, -2) @ grad_stacked
        grad_query = (grad_scores @ key).view_as(query)
        return grad_query, grad_scores.transpose(-1, -2) @ stacked, grad_value, None, None


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
        self.splits_tokens = config.context_parallel_size > 1
        self.kernels: Kernels = config.kernels
        self.short_row = _SHORT_ROW if self.kernels is EAGER else _SHORT_ROW_COMPILED

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

        Context-parallel ranks give their share of the tokens and get that of the attended values;
        in between each of them attends with its share of the heads over all tokens.

        Args:
            query: [queries, B, heads, head_dim].
            key: [keys, B, key_value_heads, head_dim].
            value: As the keys.
            attention_mask: Unused, like the next two: attention is causal or follows a plan.
            attn_mask_type: Unused.
            attention_bias: Unused.
            packed_seq_params: The `AttentionPlan` of a packed sequence; B is 1.
        """
        if self.splits_tokens:
            query, key, value = (_all_tokens(t) for t in (query, key, value))
        query, key, value = (t.permute(1, 2, 0, 3) for t in (query, key, value))
        if isinstance(packed_seq_params, AttentionPlan):
            attended = packed_seq_params.attend(self, query, key, value)
        else:
            attended = self.attend_causally(query, key, value)
        packed = attended.permute(2, 0, 1, 3).flatten(2)
        return _all_heads(packed) if self.splits_tokens else packed

    def attend_causally(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Return the attended values of B sequences within the model's window, shaped as `query`.

        Args:
            query: [B, heads, queries, head_dim]; the last stands at the last key.
            key: [B, key_value_heads, keys, head_dim].
            value: As the keys.
        """
        queries, keys = query.size(2), key.size(2)
        is_plain = queries in (1, keys) and (self.window is None or keys <= self.window)
        if is_plain and 1 < queries <= self.short_row and _is_bf16_on_cpu(query):
            scale = self.softmax_scale or query.size(-1) ** -0.5
            short: Tensor = _ShortRows.apply(query, key, value, scale, self.kernels)  # type: ignore[no-untyped-call]
            return short
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


def _all_tokens(tensor: Tensor) -> Tensor:
    """Trade heads for tokens: [share of tokens, 1, heads, D] to [tokens, 1, share of heads, D]."""
    group = parallel_state.get_context_parallel_group()
    traded: Tensor = tensor_parallel.all_to_all_sp2hp(tensor.flatten(1), group)
    return traded.view(traded.size(0), 1, -1, tensor.size(-1))


def _all_heads(tensor: Tensor) -> Tensor:
    """Trade tokens for heads, back again: [tokens, 1, share of H] to [share of tokens, 1, H]."""
    group = parallel_state.get_context_parallel_group()
    traded: Tensor = tensor_parallel.all_to_all_hp2sp(tensor.flatten(1), group)
    return traded[:, None]
