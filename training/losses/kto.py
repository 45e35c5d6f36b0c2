"""Kahneman-Tversky optimization: responses that are good or bad by themselves, without a pair."""

import torch
from torch import Tensor

from alignflow.training.losses.reward import num_correct
from alignflow.training.losses.summed import SummedLoss


def kto_loss(
    policy_B: Tensor,
    reference_B: Tensor,
    is_desirable_B: Tensor,
    *,
    kl: float,
    beta: float,
    desirable_weight: float,
    undesirable_weight: float,
) -> SummedLoss:
    """Sum over responses of weight * (1 - sigmoid(±beta * (log ratio - kl))), arXiv:2402.01306.

    The log ratio is policy - reference of the response, the sign + for a desirable one and - for an
    undesirable one, and the KL term is the point from which both are seen as gains and losses. A
    unit is a response. Of the reference itself, whose KL term is 0, the loss is half the weight.

    Among the metrics, `margin` is ±beta * (log ratio) and `accuracy` counts the responses on the
    right side of the KL term.

    Args:
        policy_B: [B] float32, sums over response tokens, in nats, carrying gradient.
        reference_B: [B] float32, likewise, detached.
        is_desirable_B: [B] bool.
        kl: KL term of the global batch in nats, >= 0, see `log_ratios`; no gradient goes through
            it.
        beta: Pull towards the reference, > 0, dimensionless.
        desirable_weight: > 0, weight of desirable responses.
        undesirable_weight: > 0, weight of the others.

    Raises:
        ValueError: The tensors differ in shape.
    """
    if not policy_B.shape == reference_B.shape == is_desirable_B.shape:
        raise ValueError(f"{policy_B.shape=}, {reference_B.shape=}, {is_desirable_B.shape=}")
    sign_B = torch.where(is_desirable_B, 1.0, -1.0).to(policy_B.dtype)
    weight_B = torch.where(is_desirable_B, desirable_weight, undesirable_weight).to(policy_B.dtype)
    log_ratio_B = policy_B - reference_B
    logits_B = beta * sign_B * (log_ratio_B - kl)
    units = torch.tensor(policy_B.numel(), device=policy_B.device)
    return SummedLoss(
        total=(weight_B * torch.sigmoid(-logits_B)).sum(),
        units=units,
        metrics={
            "accuracy": num_correct(logits_B),
            "margin": (beta * sign_B * log_ratio_B).detach().sum(),
            "kl": kl * units,
        },
    )


def log_ratios(policy_B: Tensor, reference_B: Tensor) -> SummedLoss:
    """Sum over responses of policy - reference, in nats. A unit is a response.

    Over responses that answer another prompt than theirs the mean, clamped at 0, is the KL term of
    KTO (arXiv:2402.01306).

    Args:
        policy_B: [B] float32.
        reference_B: [B] float32.

    Raises:
        ValueError: The two differ in shape.
    """
    if policy_B.shape != reference_B.shape:
        raise ValueError(f"{policy_B.shape=} but {reference_B.shape=}")
    return SummedLoss(
        total=(policy_B - reference_B).sum(),
        units=torch.tensor(policy_B.numel(), device=policy_B.device),
    )
