"""Direct preference optimization and its family: preference training without a reward model.

All losses compare a policy with a reference on pairs of responses to one prompt. The margin of a
pair is (policy - reference) of the chosen response less that of the rejected one, in nats. A unit
is a pair. The rewards among the metrics are the implicit ones, eq. 5 of arXiv:2305.18290:
beta * (policy - reference).
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from alignflow.training.losses.reward import num_correct
from alignflow.training.losses.summed import SummedLoss

Distance = Literal["sq", "fwd_kl", "bwd_kl"]
"""How far apart two logits are, see `rpo_loss`."""


@dataclass(frozen=True)
class PairLogps:
    """Log-probabilities of B pairs of responses, in nats.

    They are sums over the response's tokens, but for `ipo_loss`, which wants means.
    """

    chosen_B: Tensor
    """[B] float32."""
    rejected_B: Tensor
    """[B] float32."""


def dpo_loss(
    policy: PairLogps, reference: PairLogps, *, beta: float, label_smoothing: float = 0.0
) -> SummedLoss:
    """Sum over pairs of -log sigmoid(beta * margin), eq. 7 of arXiv:2305.18290.

    With smoothing it is the expected loss where that share of the labels is wrong, known as
    conservative DPO: (1 - s) * -log sigmoid(beta * margin) + s * -log sigmoid(-beta * margin). Of
    the reference itself it is ln 2 a pair, whatever the smoothing.

    Args:
        policy: [B] float32 each, carrying gradient.
        reference: [B] float32 each, detached.
        beta: Pull towards the reference, > 0, dimensionless.
        label_smoothing: Share of pairs taken to be the wrong way round, from 0 to below 1/2.

    Raises:
        ValueError: Policy and reference differ in shape.
    """
    rewards = _rewards(policy, reference, beta)
    logits_B = rewards.chosen_B - rewards.rejected_B
    right_B, wrong_B = -F.logsigmoid(logits_B), -F.logsigmoid(-logits_B)
    return _summed((1 - label_smoothing) * right_B + label_smoothing * wrong_B, rewards)


def ipo_loss(policy: PairLogps, reference: PairLogps, *, beta: float) -> SummedLoss:
    """Sum over pairs of (margin - 1 / (2 beta))^2, eq. 17 of arXiv:2310.12036.

    Of the reference itself it is 1 / (2 beta)^2 a pair. The target is one for all lengths, so the
    log-probabilities have to be means over the response's tokens.

    Args:
        policy: [B] float32 each, means over tokens, carrying gradient.
        reference: [B] float32 each, means over tokens, detached.
        beta: Pull towards the reference, > 0, the paper's tau.

    Raises:
        ValueError: Policy and reference differ in shape.
    """
    rewards = _rewards(policy, reference, beta)
    margin_B = (rewards.chosen_B - rewards.rejected_B) / beta
    return _summed((margin_B - 1 / (2 * beta)).square(), rewards)


def rpo_loss(
    policy: PairLogps,
    reference: PairLogps,
    reward_gap_B: Tensor,
    *,
    beta: float,
    reward_scale: float,
    distance: Distance,
) -> SummedLoss:
    """Sum over pairs of the distance from the implicit preference to the true one.

    Reward-aware preference optimization, arXiv:2406.11704, in the three forms of NeMo-Aligner,
    whose names these are. The logits are a = beta * margin and b = reward_scale * reward gap;
    sigmoid(a) and sigmoid(b) are the chances that the chosen response wins.

    - `sq`: (a - b)^2, of the logits, so that far-off pairs keep their gradient;
    - `bwd_kl`: KL(sigmoid(b) || sigmoid(a)), cross entropy with a soft label less its entropy;
    - `fwd_kl`: KL(sigmoid(a) || sigmoid(b)).

    Args:
        policy: [B] float32 each, carrying gradient.
        reference: [B] float32 each, detached.
        reward_gap_B: [B] float32, ground-truth reward of the chosen response less that of the
            rejected one.
        beta: Pull towards the reference, > 0, dimensionless.
        reward_scale: Logits a unit of reward, > 0.
        distance: Which form.

    Raises:
        ValueError: Policy, reference and reward gaps differ in shape.
    """
    rewards = _rewards(policy, reference, beta)
    if reward_gap_B.shape != rewards.chosen_B.shape:
        raise ValueError(f"{reward_gap_B.shape=} but {rewards.chosen_B.shape=}")
    logits_B = rewards.chosen_B - rewards.rejected_B
    target_B = reward_scale * reward_gap_B
    if distance == "sq":
        losses_B = (logits_B - target_B).square()
    elif distance == "bwd_kl":
        losses_B = _bernoulli_kl(target_B, logits_B)
    else:
        losses_B = _bernoulli_kl(logits_B, target_B)
    return _summed(losses_B, rewards)


def with_sft(loss: SummedLoss, mean_logps_B: Tensor, *, weight: float) -> SummedLoss:
    """Add weight * -(mean log-probability of a token), summed over responses to imitate.

    It keeps the likelihood of good responses from falling along with that of the others, as in
    arXiv:2404.19733. Each response counts alike, however long; the units stay those of the loss,
    which moves to the metrics as `preference_loss`, beside the `sft_loss` before weighting.

    Args:
        loss: The preference loss.
        mean_logps_B: [B] float32, means over each response's tokens, in nats, carrying gradient; 0
            for a response that is not to be imitated.
        weight: > 0, dimensionless.
    """
    sft = -mean_logps_B.sum()
    return SummedLoss(
        total=loss.total + weight * sft,
        units=loss.units,
        metrics={
            **loss.metrics,
            "preference_loss": loss.total.detach(),
            "sft_loss": sft.detach(),
        },
    )


def _rewards(policy: PairLogps, reference: PairLogps, beta: float) -> PairLogps:
    """Return the implicit rewards of both responses.

    Raises:
        ValueError: Policy and reference differ in shape.
    """
    if policy.chosen_B.shape != reference.chosen_B.shape:
        raise ValueError(f"{policy.chosen_B.shape=} but {reference.chosen_B.shape=}")
    return PairLogps(
        beta * (policy.chosen_B - reference.chosen_B),
        beta * (policy.rejected_B - reference.rejected_B),
    )


def _summed(losses_B: Tensor, rewards: PairLogps) -> SummedLoss:
    margin_B = (rewards.chosen_B - rewards.rejected_B).detach()
    return SummedLoss(
        total=losses_B.sum(),
        units=torch.tensor(losses_B.numel(), device=losses_B.device),
        metrics={
            "accuracy": num_correct(margin_B),
            "margin": margin_B.sum(),
            "chosen_reward": rewards.chosen_B.detach().sum(),
            "rejected_reward": rewards.rejected_B.detach().sum(),
        },
    )


def _bernoulli_kl(of_B: Tensor, to_B: Tensor) -> Tensor:
    """Return KL(sigmoid(of) || sigmoid(to)) of each pair of logits, [B]."""
    wins_B = of_B.sigmoid() * (F.logsigmoid(of_B) - F.logsigmoid(to_B))
    loses_B = (-of_B).sigmoid() * (F.logsigmoid(-of_B) - F.logsigmoid(-to_B))
    return wins_B + loses_B
