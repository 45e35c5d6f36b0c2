"""The packed batch: what the stages build, the model reads and the losses receive."""

from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class PackedBatch:
    """R rows packed one after another into one sequence of T tokens, N of which are scored.

    A position t is scored when the model's next-token distribution there is read: it predicts
    `tokens_T[t + 1]`, which belongs to the same row. A subclass adds the tensors its loss needs.
    """

    tokens_T: Tensor
    """[T] int64."""
    positions_T: Tensor
    """[T] int64, position within the row."""
    row_starts_R1: Tensor
    """[R + 1] int32, cumulative row boundaries; the last is T."""
    score_index_N: Tensor
    """[N] int64, the scored positions."""
    targets_N: Tensor
    """[N] int64, the token scored at each of them."""
    score_row_N: Tensor
    """[N] int64, the row of each scored token."""
    row_last_R: Tensor
    """[R] int64, index of each row's last token; a reward head reads the hidden state there."""

    @property
    def num_rows(self) -> int:
        """Rows in the batch, R."""
        return self.row_last_R.numel()

    @property
    def num_tokens(self) -> int:
        """Tokens in the batch, T."""
        return self.tokens_T.numel()

    def to(self, device: torch.device | str) -> Self:
        """Return the batch with every tensor on the device."""
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: tensor.to(device) for name, tensor in tensors.items()})
