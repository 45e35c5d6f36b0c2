"""How a policy ranks held-out pairs: by what people preferred, not by what a reward model says."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from alignflow.training.feed import Feed
from alignflow.training.forward import mean_loss
from alignflow.training.losses import SummedLoss, row_lengths
from alignflow.training.packing import Items
from alignflow.training.pairs import PairBatch
from alignflow.training.reference import answer_logps

if TYPE_CHECKING:  # importing megatron takes seconds
    from alignflow.training.megatron.run import Run


@dataclass(frozen=True)
class RankedPairs:
    """Pairs that a policy in training is asked about."""

    feed: Feed[PairBatch]
    global_batches: Sequence[Items]
    """So many at a time as all ranks are given at once."""

    def accuracy(self, run: "Run") -> float:
        """Return the share of pairs whose chosen response has more log-probability a token."""
        return 1 - mean_loss(run, self.feed, self.global_batches, misranked)["loss"]


def misranked(logps_N: Tensor, batch: PairBatch) -> SummedLoss:
    """Count the pairs whose chosen response doesn't have the larger mean log-probability.

    The mean is over tokens, so that no response wins by its length. A unit is a pair.

    Args:
        logps_N: [N] float32, the policy's log-probabilities of the scored tokens.
        batch: The pairs.
    """
    means_R = answer_logps(logps_N, batch) / row_lengths(batch.score_row_N, batch.num_rows)
    is_wrong_B = means_R[batch.chosen_rows_B] <= means_R[batch.rejected_rows_B]
    num_pairs = torch.tensor(is_wrong_B.numel(), device=is_wrong_B.device)
    return SummedLoss(total=is_wrong_B.sum(), units=num_pairs)
