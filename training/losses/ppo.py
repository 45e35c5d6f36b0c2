"""Clipped losses of policy and critic in proximal policy optimization."""

import torch
from torch import Tensor

from alignflow.training.losses.kl import kl_per_token
from alignflow.training.losses.summed import SummedLoss


def policy_loss(
    logps_N: Tensor,
    old_logps_N: Tensor,
    advantages_N: Tensor,
    is_trained_N: Tensor,
    *,
    clip: float,
    weights_N: Tensor | None = None,
) -> SummedLoss:
    """Sum over actions of -min(ratio * A, clip(ratio) * A), eq. 7 of arXiv:1707.06347.

    The ratio is policy / old policy of the action: a sampled token, or a response with the sums of
    its tokens' log-probabilities. A unit is an action that is trained, or where the weights of a
    response's tokens add up to 1, a response (eq. 3 of arXiv:2402.03300). The metrics, weighted
    alike, are the ratio, the share of actions whose gradient the clipping took away, and the k3
    estimate of KL(old policy || policy), ratio - 1 - log ratio, in nats.

    Args:
        logps_N: [N] float32, log-probabilities under the policy in nats, carrying gradient.
        old_logps_N: [N] float32, the same under the policy that sampled, detached.
        advantages_N: [N] float32.
        is_trained_N: [N] bool, False at actions that count for nothing.
        clip: The ratio is held within 1 - clip and 1 + clip.
        weights_N: [N] float32, what each action counts; None counts each as 1. Those of a batch add
            up to a whole number.

    Raises:
        ValueError: The tensors differ in shape.
    """
    if weights_N is None:
        weights_N = torch.ones_like(advantages_N)
    _check_shapes(logps_N, old_logps_N, advantages_N, is_trained_N, weights_N)
    weights_N = weights_N[is_trained_N]
    logps_N, old_logps_N = logps_N[is_trained_N], old_logps_N[is_trained_N]
    advantages_N = advantages_N[is_trained_N]
    ratio_N = (logps_N - old_logps_N).exp()
    plain_N = -ratio_N * advantages_N
    clipped_N = -ratio_N.clamp(1 - clip, 1 + clip) * advantages_N
    return SummedLoss(
        total=(weights_N * torch.maximum(plain_N, clipped_N)).sum(),
        units=weights_N.sum().round().long(),
        metrics={
            "ratio": (weights_N * ratio_N.detach()).sum(),
            "clip_fraction": weights_N[clipped_N > plain_N].sum(),
            "approx_kl": (weights_N * kl_per_token(old_logps_N, logps_N.detach(), "k3")).sum(),
        },
    )


def value_loss(
    values_N: Tensor, old_values_N: Tensor, returns_N: Tensor, *, clip: float
) -> SummedLoss:
    """Sum over tokens of max((V - R)^2, (V clipped - R)^2) / 2, with V clipped to V old +- clip.

    This is the value loss of OpenAI's baselines that arXiv:1909.08593 and all that followed use: a
    value gains nothing by moving further than `clip` from what it was at the rollout. A unit is a
    token. The metric is the share of tokens whose gradient the clipping took away.

    Args:
        values_N: [N] float32, carrying gradient.
        old_values_N: [N] float32, values at the rollout, detached.
        returns_N: [N] float32, what they should have been.
        clip: Largest gainful move, in units of the reward.

    Raises:
        ValueError: The tensors differ in shape.
    """
    _check_shapes(values_N, old_values_N, returns_N)
    moved_N = values_N - old_values_N
    near_N = torch.where(moved_N.abs() > clip, old_values_N + clip * moved_N.sign(), values_N)
    plain_N, clipped_N = (values_N - returns_N).square(), (near_N - returns_N).square()
    return SummedLoss(
        total=torch.maximum(plain_N, clipped_N).sum() / 2,
        units=torch.tensor(values_N.numel(), device=values_N.device),
        metrics={"clip_fraction": (clipped_N > plain_N).sum()},
    )


def _check_shapes(first: Tensor, *others: Tensor) -> None:
    for other in others:
        if other.shape != first.shape:
            raise ValueError(f"shapes differ: {tuple(first.shape)} and {tuple(other.shape)}")
