"""The losses of the DPO family, chosen by the config and applied to batches."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from alignflow.data_validation.canonical import Split
from alignflow.training.config import DPOConfig
from alignflow.training.feed import Feed
from alignflow.training.forward import mean_loss
from alignflow.training.losses import (
    Distance,
    PairLogps,
    SummedLoss,
    dpo_loss,
    ipo_loss,
    kto_loss,
    log_ratios,
    row_lengths,
    rpo_loss,
    with_sft,
)
from alignflow.training.packing import Items
from alignflow.training.pairs import ReferencedPairBatch
from alignflow.training.reference import answer_logps
from alignflow.training.responses import ReferencedBatch, ResponseBatch

if TYPE_CHECKING:  # importing megatron takes seconds
    from alignflow.training.megatron.run import Run


_DISTANCES: dict[str, Distance] = {
    "rpo_sq": "sq",
    "rpo_fwd_kl": "fwd_kl",
    "rpo_bwd_kl": "bwd_kl",
}


@dataclass
class MismatchKL:
    """The KL term of KTO: how far the policy has moved from the reference, seen from afar.

    As in the paper and in TRL it is the mean log ratio of responses that answer another prompt, cut
    at 0: a biased estimate, but one that needs no sampling. Theirs is a mean over a microbatch, so
    that it depends on how a batch is cut; here it is one over the global batch, measured without
    gradient on all ranks just before the batch is computed, which no layout changes.
    """

    run: "Run"
    train: Feed[ReferencedBatch]
    """Each prompt of the split with a response that isn't its own, item by item."""
    held_out: Feed[ReferencedBatch]
    nats: float = field(default=0.0, init=False)
    """The term of the global batch that was measured last."""

    def measure(self, split: Split, items: Items) -> None:
        """Measure the term for a global batch; called by all ranks."""
        feed = self.train if split == "train" else self.held_out
        means = mean_loss(self.run, feed, [items], _log_ratios)
        self.nats = max(means["loss"], 0.0)


def pair_loss(logps_N: Tensor, batch: ReferencedPairBatch, *, config: DPOConfig) -> SummedLoss:
    """Return the loss of a microbatch of pairs.

    Args:
        logps_N: [N] float32, the policy's log-probabilities of the scored tokens.
        batch: The pairs, with the reference's log-probabilities.
        config: Any loss but `kto`.
    """
    policy_R = answer_logps(logps_N, batch)
    lengths_R = row_lengths(batch.score_row_N, batch.num_rows)
    chosen_B, rejected_B = batch.chosen_rows_B, batch.rejected_rows_B
    # A pair counts by its sums, but in IPO by its means.
    per_R = lengths_R if config.loss == "ipo" else torch.ones_like(lengths_R)
    loss = preference_loss(
        PairLogps(policy_R[chosen_B] / per_R[chosen_B], policy_R[rejected_B] / per_R[rejected_B]),
        PairLogps(
            batch.reference_chosen_B / per_R[chosen_B],
            batch.reference_rejected_B / per_R[rejected_B],
        ),
        batch.labels_BL,
        config=config,
    )
    if not config.sft_weight:
        return loss
    means_B = policy_R[chosen_B] / lengths_R[chosen_B]
    return with_sft(loss, means_B, weight=config.sft_weight)


def preference_loss(
    policy: PairLogps, reference: PairLogps, labels_BL: Tensor, *, config: DPOConfig
) -> SummedLoss:
    """Return the loss that the config names, without its SFT term.

    Args:
        policy: [B] float32 each, carrying gradient.
        reference: [B] float32 each, detached.
        labels_BL: [B, L] float32; for RPO the one label is the gap between the pair's scores.
        config: Any loss but `kto`.
    """
    match config.loss:
        case "sigmoid":
            smoothing = config.label_smoothing
            return dpo_loss(policy, reference, beta=config.beta, label_smoothing=smoothing)
        case "ipo":
            return ipo_loss(policy, reference, beta=config.beta)
        case "rpo_sq" | "rpo_fwd_kl" | "rpo_bwd_kl":
            return rpo_loss(
                policy,
                reference,
                labels_BL[:, 0],
                beta=config.beta,
                reward_scale=config.reward_scale,
                distance=_DISTANCES[config.loss],
            )
        case "kto":
            raise ValueError("kto judges responses, not pairs")


def response_loss(
    logps_N: Tensor, batch: ResponseBatch, *, kl: MismatchKL, config: DPOConfig
) -> SummedLoss:
    """Return the KTO loss of a microbatch of responses.

    Args:
        logps_N: [N] float32, the policy's log-probabilities of the scored tokens.
        batch: The responses, with the reference's log-probabilities.
        kl: Measured for the global batch that the microbatch is of.
        config: Of the loss `kto`.
    """
    policy_B = answer_logps(logps_N, batch)[batch.response_rows_B]
    loss = judged_loss(policy_B, batch.reference_B, batch.is_desirable_B, kl=kl.nats, config=config)
    if not config.sft_weight:
        return loss
    lengths_R = row_lengths(batch.score_row_N, batch.num_rows)
    means_B = policy_B / lengths_R[batch.response_rows_B] * batch.is_desirable_B
    return with_sft(loss, means_B, weight=config.sft_weight)


def judged_loss(
    policy_B: Tensor, reference_B: Tensor, is_desirable_B: Tensor, *, kl: float, config: DPOConfig
) -> SummedLoss:
    """Return the KTO loss with the config's options, without its SFT term; see `kto_loss`."""
    return kto_loss(
        policy_B,
        reference_B,
        is_desirable_B,
        kl=kl,
        beta=config.beta,
        desirable_weight=config.desirable_weight,
        undesirable_weight=config.undesirable_weight,
    )


def loss_of_reference(labels_BL: Tensor, *, config: DPOConfig) -> float:
    """Return the mean loss, without its SFT term, that a policy has which is its own reference.

    It is ln 2 for `sigmoid`, 1 / (2 beta)^2 for `ipo`, and depends on the labels for the others.

    Args:
        labels_BL: [B, L] float32, labels of the pairs or responses.
        config: The loss.
    """
    zeros_B = torch.zeros(len(labels_BL))
    if config.loss == "kto":
        loss = judged_loss(zeros_B, zeros_B, labels_BL[:, 0] == 1, kl=0.0, config=config)
    else:
        same = PairLogps(zeros_B, zeros_B)
        loss = preference_loss(same, same, labels_BL, config=config)
    return float(loss.total / loss.units)


def _log_ratios(logps_N: Tensor, batch: ReferencedBatch) -> SummedLoss:
    return log_ratios(answer_logps(logps_N, batch)[batch.response_rows_B], batch.reference_B)
