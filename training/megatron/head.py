"""Log-probabilities of scored tokens, a slice of positions at a time.

Logits of all positions at once, in float32 and with their gradient beside them, would take more
memory than all else of a step, and passing over it more time than the products that make them.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from alignflow.training.megatron.core import parallel_state, tensor_parallel
from alignflow.training.megatron.kernels import Kernels

# Logits of one slice: 64 MiB in bf16.
_SLICE_ELEMENTS = 2**25
# Logits that are kept for the backward pass; the rest is computed again.
_KEPT_ELEMENTS = 2**27


def scored_log_probabilities(
    hidden_NH: Tensor,
    weight_VH: Tensor,
    targets_N: Tensor,
    *,
    num_entries: int,
    temperature: float,
    kernels: Kernels,
) -> Tensor:
    """Return the log-probability in nats of each target, [N] float32, on every rank.

    Args:
        hidden_NH: [N, hidden], the same on every tensor-parallel rank.
        weight_VH: [V, hidden], this rank's part of the vocabulary. Where the parameter has a
            `main_grad`, its gradient is added there, in float32.
        targets_N: [N] int64, among the whole vocabulary.
        num_entries: Rows of the part that are entries of the vocabulary; the others fill it up.
        temperature: Divides the logits.
        kernels: Element-wise functions.
    """
    hidden_NH = tensor_parallel.copy_to_tensor_model_parallel_region(hidden_NH)
    first = parallel_state.get_tensor_model_parallel_rank() * weight_VH.size(0)
    own_N = targets_N - first
    own_N = torch.where((own_N >= 0) & (own_N < num_entries), own_N, -1)
    head = _Head(temperature, kernels, num_entries, keeps=torch.is_grad_enabled())
    logps_N: Tensor = _ScoredLogProbabilities.apply(  # type: ignore[no-untyped-call]
        hidden_NH, weight_VH, own_N, head
    )
    return logps_N


@dataclass(frozen=True)
class _Head:
    """What doesn't have a gradient."""

    temperature: float
    kernels: Kernels
    num_entries: int
    keeps: bool

    def slices(self, num_rows: int) -> list[slice]:
        """Split the scored positions so that the logits of each part are few."""
        size = max(1, _SLICE_ELEMENTS // self.num_entries)
        return [slice(start, start + size) for start in range(0, max(1, num_rows), size)]


class _ScoredLogProbabilities(torch.autograd.Function):
    """The softmax of each slice is made anew in the backward pass, its logits only beyond a bound.

    The target's own gradient is put in by itself: (1 - p) g, where -p g + g would round twice.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_NH: Tensor, weight_VH: Tensor, own_N: Tensor, head: _Head
    ) -> Tensor:
        entries_VH = weight_VH[: head.num_entries]
        kept: list[Tensor] = []
        log_sums, picked = [], []
        for number, rows in enumerate(head.slices(len(own_N))):
            logits = hidden_NH[rows] @ entries_VH.t()
            log_sums.append(head.kernels.log_sums_exp(logits, head.temperature))
            picked.append(logits.gather(1, own_N[rows, None].clamp(min=0))[:, 0])
            # The first ones, each found by its number.
            if (
                head.keeps
                and number == len(kept)
                and rows.stop * head.num_entries <= _KEPT_ELEMENTS
            ):
                kept.append(logits)
        picked_N = (torch.cat(picked).float() / head.temperature).masked_fill(own_N < 0, 0.0)
        log_sums_N, picked_N = _over_vocabulary(torch.cat(log_sums), picked_N)
        logps_N = picked_N - log_sums_N
        ctx.save_for_backward(hidden_NH, weight_VH, own_N, log_sums_N, logps_N)
        ctx.head, ctx.kept = head, kept
        return logps_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        hidden_NH, weight_VH, own_N, log_sums_N, logps_N = ctx.saved_tensors
        head: _Head = ctx.head
        (grad_N,) = grads
        entries_VH = weight_VH[: head.num_entries]
        target_grad_N = ((1 - logps_N.exp()) * grad_N / head.temperature).to(hidden_NH.dtype)
        total_VH = _gradient_total(weight_VH) if ctx.needs_input_grad[1] else None
        grad_NH = torch.empty_like(hidden_NH)
        for number, rows in enumerate(head.slices(len(own_N))):
            if number < len(ctx.kept):
                logits, ctx.kept[number] = ctx.kept[number], None
            else:
                logits = hidden_NH[rows] @ entries_VH.t()
            grad_logits = head.kernels.other_logit_gradients(
                logits, log_sums_N[rows], grad_N[rows], head.temperature
            )
            (own,) = torch.nonzero(own_N[rows] >= 0, as_tuple=True)
            grad_logits[own, own_N[rows][own]] = target_grad_N[rows][own]
            torch.mm(grad_logits, entries_VH, out=grad_NH[rows])
            if total_VH is not None:
                head.kernels.accumulate(
                    total_VH[: head.num_entries], grad_logits.t() @ hidden_NH[rows]
                )
        if total_VH is None or hasattr(weight_VH, "main_grad"):
            return grad_NH, None, None, None
        return grad_NH, total_VH.to(weight_VH.dtype), None, None


def _gradient_total(weight_VH: Tensor) -> Tensor:
    """Return where the weight's gradient is added up: Megatron's buffer, where there is one."""
    main_grad: Tensor | None = getattr(weight_VH, "main_grad", None)
    return torch.zeros_like(weight_VH, dtype=torch.float32) if main_grad is None else main_grad


def _over_vocabulary(log_sums_N: Tensor, picked_N: Tensor) -> tuple[Tensor, Tensor]:
    """Join the tensor-parallel ranks' parts of the sums and of the targets' logits."""
    if parallel_state.get_tensor_model_parallel_world_size() == 1:
        return log_sums_N, picked_N
    group = parallel_state.get_tensor_model_parallel_group()
    highest_N = log_sums_N.clone()
    dist.all_reduce(highest_N, dist.ReduceOp.MAX, group=group)
    sums_2N = torch.stack([torch.exp(log_sums_N - highest_N), picked_N])
    dist.all_reduce(sums_2N, group=group)
    return highest_N + sums_2N[0].log(), sums_2N[1]
