"""Pairs as a policy ranks them."""

import numpy as np
import torch

from alignflow.training.pairs import PairBatch
from alignflow.training.ranked_pairs import misranked


def batch(*lengths: int) -> PairBatch:
    """Rows of so many scored tokens; each two are a pair. Nothing else of it is read."""
    empty = torch.zeros(0, dtype=torch.int64)
    first_B = torch.arange(0, len(lengths), 2)
    return PairBatch(
        tokens_T=empty,
        positions_T=empty,
        row_tokens_S=empty,
        row_starts_R1=empty,
        score_index_N=empty,
        targets_N=empty,
        score_row_N=torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths)),
        row_last_R=torch.zeros(len(lengths), dtype=torch.int64),
        chosen_rows_B=first_B,
        rejected_rows_B=first_B + 1,
        labels_BL=torch.zeros(len(first_B), 0),
    )


def test_a_pair_counts_by_its_means_over_tokens() -> None:
    # Means: -2 before -3, right, though the sums -6 and -3 say otherwise; -2 before -1, wrong; -1
    # and -1, which is not a preference.
    logps_N = torch.tensor([-1.0, -2, -3, -3, -2, -1, -1, -1, -1, -1])
    loss = misranked(logps_N, batch(3, 1, 1, 2, 1, 2))
    assert (int(loss.total), int(loss.units)) == (2, 3)


def test_parts_add_up() -> None:
    logps_N = torch.tensor([-1.0, -2, -3, -3, -2, -1, -1])
    whole = misranked(logps_N, batch(3, 1, 1, 2))
    parts = misranked(logps_N[:4], batch(3, 1)), misranked(logps_N[4:], batch(1, 2))
    assert sum(int(part.total) for part in parts) == int(whole.total)
    assert sum(int(part.units) for part in parts) == int(whole.units)
