"""The few words that the ranks of a job exchange outside of the model's own communication.

Ranks that share a data-parallel rank hold the same values: a maximum over all ranks is unmoved by
that, and so is a ratio of two sums.
"""

from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def rank() -> int:
    """Return which of the job's processes this is."""
    return dist.get_rank()


def num_ranks() -> int:
    """Return how many processes the job has."""
    return dist.get_world_size()


def any_rank(flag: bool) -> bool:
    """Return whether the flag is set on some rank."""
    return bool(max_over_ranks(torch.tensor(flag, dtype=torch.int32)))


def max_over_ranks(values: Tensor) -> Tensor:
    """Return the elementwise maximum over all ranks, on the CPU."""
    return _reduced(values, dist.ReduceOp.MAX)


def sum_over_ranks(values: Tensor) -> Tensor:
    """Return the elementwise sum over all ranks, on the CPU."""
    return _reduced(values, dist.ReduceOp.SUM)


def from_all_ranks(value: T) -> list[T]:
    """Return what every rank gave, in the order of ranks."""
    given: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(given, value)
    return given


def wait_for_all() -> None:
    """Return when every rank has come here."""
    any_rank(False)


def _reduced(values: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    reduced = values.detach().to(device, copy=True)
    dist.all_reduce(reduced, operation)
    return reduced.cpu()
