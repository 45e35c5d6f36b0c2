"""The packed batch: what the stages build, the model reads and the losses receive."""

from dataclasses import dataclass, fields, replace
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class PackedBatch:
    """R rows of S tokens in all, packed into one sequence of T tokens, N of which are scored.

    Rows that begin alike, such as two answers to one prompt, may share those tokens: T is then less
    than S, and the model computes each shared token once. A position is scored when the model's
    next-token distribution there is read. A subclass adds the tensors its loss needs.
    """

    tokens_T: Tensor
    """[T] int64."""
    positions_T: Tensor
    """[T] int64, position within the row."""
    row_tokens_S: Tensor
    """[S] int64, where each token of each row lies among the T, row after row."""
    row_starts_R1: Tensor
    """[R + 1] int32, where each row begins among the S; the last is S."""
    score_index_N: Tensor
    """[N] int64, the scored positions among the T; one that rows share may come twice."""
    targets_N: Tensor
    """[N] int64, the token scored at each of them."""
    score_row_N: Tensor
    """[N] int64, the row of each scored token."""
    row_last_R: Tensor
    """[R] int64, each row's last token among the T; a reward head reads the hidden state there."""

    @property
    def num_rows(self) -> int:
        """Rows in the batch, R."""
        return self.row_last_R.numel()

    @property
    def num_tokens(self) -> int:
        """Tokens that the model computes, T."""
        return self.tokens_T.numel()

    def to(self, device: torch.device | str) -> Self:
        """Return the batch with every tensor on the device."""
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: tensor.to(device) for name, tensor in tensors.items()})

    def filled_up(self, multiple: int) -> Self:
        """Return the batch with T a multiple of a number, by a further row that nothing reads.

        It has its place among the rows of attention alone: R and N stay as they are.
        """
        num_missing = -self.num_tokens % multiple
        if not num_missing:
            return self
        added = torch.arange(num_missing, device=self.tokens_T.device)
        return replace(
            self,
            tokens_T=F.pad(self.tokens_T, (0, num_missing)),
            positions_T=torch.cat([self.positions_T, added]),
            row_tokens_S=torch.cat([self.row_tokens_S, self.num_tokens + added]),
            row_starts_R1=torch.cat([self.row_starts_R1, self.row_starts_R1[-1:] + num_missing]),
        )
