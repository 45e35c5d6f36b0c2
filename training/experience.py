"""What is learnt from a rollout: each token's advantage and return, and batches of them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from alignflow.training.advantages import (
    gae_advantages,
    group_normalised,
    leave_one_out,
    row_sums,
    token_rewards,
    whitened,
)
from alignflow.training.batch import PackedBatch
from alignflow.training.config import GAEConfig, GRPOConfig, PPOConfig, RLOOConfig
from alignflow.training.losses import kl_per_token
from alignflow.training.packing import Items, pack
from alignflow.training.rollout import Rollout
from alignflow.training.rows import TokenRows


@dataclass(frozen=True)
class TokenModels:
    """What the models say at each of the N tokens of a rollout's responses, [N] float64."""

    old_logps_N: Tensor
    """Log-probability in nats under the policy that sampled, computed as in training."""
    reference_logps_N: Tensor
    """The same under the initial policy."""
    values_N: Tensor | None
    """Value before the token, in the scale of the reward; None without a critic."""


@dataclass(frozen=True)
class Experience:
    """A rollout, judged: what actor and critic learn from, [N] each."""

    rollout: Rollout
    models: TokenModels
    rewards_B: Tensor
    """[B] float64, as `rewards` gives them."""
    is_trained_N: Tensor
    """bool, False at tokens of responses that the actor doesn't learn from."""
    advantages_N: Tensor
    """float64."""
    returns_N: Tensor | None
    """float64, what the values should have been; None without a critic."""
    weights_N: Tensor
    """float64, what each token counts in the policy loss; those of a response add up to 1, or to
    its tokens."""

    def num_trained(self, prompts: Items) -> int:
        """Return from how many tokens of these prompts' responses the actor learns."""
        return int(self.is_trained_N[self.rollout.places(prompts)].sum())


def rewards(rollout: Rollout, config: PPOConfig) -> Tensor:
    """Return the score of each response, or what it gets for want of an end, [B] float64."""
    if config.missing_end_reward is None:
        return rollout.scores_B
    return rollout.scores_B.where(rollout.has_ended_B, config.missing_end_reward)


def judged(
    rollout: Rollout, models: TokenModels, config: PPOConfig, *, kl_coef: float
) -> Experience:
    """Turn the scores of a rollout into advantages, as the config says.

    Args:
        rollout: The responses.
        models: What the models say of them.
        config: Estimator, and what becomes of responses without an end.
        kl_coef: Price of a nat of divergence in the reward.
    """
    rewards_B = rewards(rollout, config)
    is_trained_B = rollout.has_ended_B | config.learns_unended
    is_trained_N = rollout.of_tokens(is_trained_B)
    kl_N = kl_per_token(models.old_logps_N, models.reference_logps_N, config.kl_estimator)
    lengths_B = rollout.lengths_B
    token_rewards_N = token_rewards(
        kl_N, rewards_B, lengths_B, kl_coef=kl_coef if config.kl_placement == "reward" else 0.0
    )
    returns_N = None
    totals_PK = row_sums(token_rewards_N, lengths_B).view(-1, config.samples_per_prompt)
    match config.estimator, models.values_N:
        case GAEConfig(discount=discount, decay=decay, whiten=whiten), Tensor() as values_N:
            advantages_N = gae_advantages(
                token_rewards_N, values_N, lengths_B, discount=discount, decay=decay
            )
            returns_N = advantages_N + values_N
            if whiten:
                advantages_N = whitened(advantages_N, is_trained_N)
        case RLOOConfig(), _:
            advantages_N = rollout.of_tokens(leave_one_out(totals_PK).view(-1))
        case GRPOConfig(divide_by_std=divide_by_std), _:
            normalised_PK = group_normalised(totals_PK, divide_by_std=divide_by_std)
            advantages_N = rollout.of_tokens(normalised_PK.view(-1))
        case _:
            raise ValueError("the estimator gae needs values")
    return Experience(
        rollout,
        models,
        rewards_B,
        is_trained_N,
        advantages_N,
        returns_N,
        rollout.of_tokens(_token_weights(lengths_B, config)),
    )


def _token_weights(lengths_B: Tensor, config: PPOConfig) -> Tensor:
    """Return what each token of a response counts in the policy loss, [B] float64."""
    match config.estimator:
        case GRPOConfig(mean_over="responses"):
            return 1 / lengths_B.double()
        case _:
            return torch.ones(len(lengths_B), dtype=torch.float64)


@dataclass(frozen=True)
class ActorBatch(PackedBatch):
    """Packed responses with what the policy learns from, all float32."""

    old_logps_N: Tensor
    """[N], in nats."""
    reference_logps_N: Tensor
    """[N], in nats."""
    advantages_N: Tensor
    """[N]."""
    is_trained_N: Tensor
    """[N] bool."""
    weights_N: Tensor
    """[N]."""
    lengths_B: Tensor
    """[B] int64, tokens of each response."""


@dataclass(frozen=True)
class CriticBatch(PackedBatch):
    """Packed responses with what the critic learns from, all float32."""

    old_values_N: Tensor
    """[N]."""
    returns_N: Tensor
    """[N]."""


def pack_for_actor(rows: TokenRows, prompts: Items, experience: Experience) -> ActorBatch:
    """Return the responses to some prompts for an update of the policy."""
    rollout, models = experience.rollout, experience.models
    places = rollout.places(prompts)
    return ActorBatch(
        **vars(pack(rows, prompts)),
        old_logps_N=models.old_logps_N[places].float(),
        reference_logps_N=models.reference_logps_N[places].float(),
        advantages_N=experience.advantages_N[places].float(),
        is_trained_N=experience.is_trained_N[places],
        weights_N=experience.weights_N[places].float(),
        lengths_B=rollout.lengths_B[torch.from_numpy(rollout.rows.rows_of(prompts))],
    )


def pack_for_critic(rows: TokenRows, prompts: Items, experience: Experience) -> CriticBatch:
    """Return the responses to some prompts for an update of the critic.

    Raises:
        ValueError: The experience was made without a critic.
    """
    places = experience.rollout.places(prompts)
    if experience.models.values_N is None or experience.returns_N is None:
        raise ValueError("there is no critic")
    return CriticBatch(
        **vars(pack(rows, prompts)),
        old_values_N=experience.models.values_N[places].float(),
        returns_N=experience.returns_N[places].float(),
    )
