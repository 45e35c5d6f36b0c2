"""From scored tokens to rows."""

import torch
from torch import Tensor


def row_logps(logps_N: Tensor, score_row_N: Tensor, num_rows: int) -> Tensor:
    """Log-probability of each row's scored tokens, in nats.

    Args:
        logps_N: [N] float32, log-probabilities of the scored tokens.
        score_row_N: [N] int64, the row of each.
        num_rows: R.

    Returns:
        [R] float32; a row without scored tokens has 0.
    """
    zeros_R = torch.zeros(num_rows, dtype=logps_N.dtype, device=logps_N.device)
    return zeros_R.index_add(0, score_row_N, logps_N)


def row_lengths(score_row_N: Tensor, num_rows: int) -> Tensor:
    """Scored tokens of each row, at least 1, so that a row without any can be divided by it.

    Args:
        score_row_N: [N] int64, the row of each scored token.
        num_rows: R.

    Returns:
        [R] int64.
    """
    return torch.bincount(score_row_N, minlength=num_rows).clamp(min=1)
