"""The element-wise parts of a model: op by op, or compiled into one pass over memory each.

On a CPU these passes, not the matrix products, take most of a training step. Compiled, each reads
its inputs once, computes in float32 and rounds once.
"""

import os
import shutil
from collections.abc import Callable
from dataclasses import astuple, dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from alignflow.errors import ConfigError


def rms_norm(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return hidden states over their root mean square, times the weight (arXiv:1910.07467).

    Args:
        hidden: [..., hidden].
        weight: [hidden].
        eps: Added to the mean square.
    """
    return F.rms_norm(hidden, weight.shape, weight, eps)


def swiglu(gate_and_up: Tensor) -> Tensor:
    """Return SiLU(gate) times up, [..., F] of [..., 2 F] (arXiv:2002.05202)."""
    gate, up = gate_and_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def rotated_rows(rows: Tensor, index_M: Tensor, cos_MF: Tensor, sin_MF: Tensor) -> Tensor:
    """Return chosen rows of heads, rotated (arXiv:2104.09864), [M, heads, 2 F].

    Channel f turns together with channel F + f. Rotating by the negative sine turns back.

    Args:
        rows: [N, heads, 2 F].
        index_M: [M] int64, which of them.
        cos_MF: [M, F] in the type of the rows, cosine of each angle.
        sin_MF: As the cosine.
    """
    first, second = rows.index_select(0, index_M).chunk(2, dim=-1)
    cos, sin = cos_MF[:, None], sin_MF[:, None]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def attention_probabilities(scores: Tensor, log_sums: Tensor, scale: float) -> Tensor:
    """Return causal softmax probabilities from scores, in the scores' shape and type.

    Args:
        scores: [M, L, L], products of queries and keys of M heads.
        log_sums: [M, L], logarithm of each query's sum of exponentials of scaled scores.
        scale: Of the scores.
    """
    length = scores.size(-1)
    at_L = torch.arange(length, device=scores.device)
    probs = torch.exp(scores * scale - log_sums[..., None])
    return torch.where(at_L <= at_L[:, None], probs, 0.0)


def score_gradients(
    probs: Tensor, grad_probs: Tensor, attended: Tensor, grad: Tensor, scale: float
) -> Tensor:
    """Return the gradient of attention scores, in the type of `grad` (arXiv:2205.14135, B.2).

    Args:
        probs: [M, L, L] float32, of M heads.
        grad_probs: Their gradient, in any type.
        attended: [M, L, D], what attention returned.
        grad: Its gradient.
        scale: Of the scores.
    """
    own = (grad.float() * attended.float()).sum(-1, keepdim=True)
    return (probs * (grad_probs.float() - own) * scale).to(grad.dtype)


def log_sums_exp(logits_NV: Tensor, temperature: float) -> Tensor:
    """Return the logarithm of the sum of exponentials of logits over a temperature, [N] float32."""
    return torch.logsumexp(logits_NV.float() / temperature, dim=-1)


def other_logit_gradients(
    logits_NV: Tensor, log_sums_N: Tensor, grad_N: Tensor, temperature: float
) -> Tensor:
    """Return the gradient of logits that are not the target's, [N, V] in the logits' type.

    Args:
        logits_NV: [N, V].
        log_sums_N: [N] float32, over the whole vocabulary.
        grad_N: [N] float32, gradient of each target's log-probability.
        temperature: Divides the logits.
    """
    probs_NV = torch.exp(logits_NV.float() / temperature - log_sums_N[:, None])
    return (probs_NV * (-grad_N / temperature)[:, None]).to(logits_NV.dtype)


def accumulate(total: Tensor, part: Tensor) -> None:
    """Add a part in any type to a float32 total, in place."""
    total.add_(part)


@dataclass(frozen=True)
class Kernels:
    """The functions of this module, as they are or compiled."""

    rms_norm: Callable[[Tensor, Tensor, float], Tensor] = rms_norm
    swiglu: Callable[[Tensor], Tensor] = swiglu
    rotated_rows: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] = rotated_rows
    attention_probabilities: Callable[[Tensor, Tensor, float], Tensor] = attention_probabilities
    score_gradients: Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor] = score_gradients
    log_sums_exp: Callable[[Tensor, float], Tensor] = log_sums_exp
    other_logit_gradients: Callable[[Tensor, Tensor, Tensor, float], Tensor] = other_logit_gradients
    accumulate: Callable[[Tensor, Tensor], None] = accumulate


EAGER = Kernels()


@cache
def compiled_kernels() -> Kernels:
    """Return the kernels compiled; each is at its first call, for sequences of any length.

    Raises:
        ConfigError: There is neither a CUDA device nor a C++ compiler.
    """
    compiler = os.environ.get("CXX", "g++")  # as torch looks for it
    if not torch.cuda.is_available() and shutil.which(compiler) is None:
        raise ConfigError(
            f"compile: there is no C++ compiler {compiler!r}; install g++ or leave compile out."
        )
    return Kernels(*(torch.compile(k, dynamic=True) for k in astuple(EAGER)))
