"""The models of PPO, and what actor and critic minimise."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from alignflow.training.advantages import row_sums
from alignflow.training.batch import PackedBatch
from alignflow.training.config import PPOConfig
from alignflow.training.experience import ActorBatch, CriticBatch
from alignflow.training.losses import SummedLoss, kl_per_token, policy_loss, value_loss
from alignflow.training.megatron.run import Run
from alignflow.training.reward_scale import RewardScale


@dataclass(frozen=True)
class Critic:
    """A value model that starts as the reward model and speaks in the scale of its record."""

    run: Run
    scale: RewardScale
    """Of the reward model."""
    value_clip: float

    def values(self, output_N: Tensor) -> Tensor:
        """Return values in the scale of the reward, [N] float32, from the model's output."""
        return self.scale.applied(output_N)

    def forward(self, batches: Sequence[PackedBatch]) -> list[Tensor]:
        """Return the values of each microbatch, without gradient."""
        return [self.values(output) for output in self.run.forward(batches)]

    def loss(self, output_N: Tensor, batch: CriticBatch) -> SummedLoss:
        """Return the loss of a microbatch."""
        return value_loss(
            self.values(output_N), batch.old_values_N, batch.returns_N, clip=self.value_clip
        )


@dataclass(frozen=True)
class Models:
    """All that is in memory at once."""

    actor: Run
    reference: Callable[[Sequence[PackedBatch]], list[Tensor]]
    """From microbatches to the log-probabilities, in nats, of what each scores, under the policy as
    it was before training."""
    critic: Critic | None


def policy_objective(
    logps_N: Tensor, batch: ActorBatch, *, config: PPOConfig, kl_coef: float
) -> SummedLoss:
    """Return the policy loss of a microbatch, with the divergence from the reference in it.

    Args:
        logps_N: [N] float32, the policy's log-probabilities of the scored tokens.
        batch: The responses, with their advantages.
        config: Clip, and estimators of advantages and of KL.
        kl_coef: Price of a nat in the loss; 0 where the reward has it already.
    """
    if config.response_is_action:
        ends_B = batch.lengths_B.cumsum(0) - 1
        loss = policy_loss(
            row_sums(logps_N, batch.lengths_B),
            row_sums(batch.old_logps_N, batch.lengths_B),
            batch.advantages_N[ends_B],
            batch.is_trained_N[ends_B],
            clip=config.ratio_clip,
        )
    else:
        loss = policy_loss(
            logps_N,
            batch.old_logps_N,
            batch.advantages_N,
            batch.is_trained_N,
            clip=config.ratio_clip,
            weights_N=batch.weights_N,
        )
    if not kl_coef:
        return loss
    kl_N = kl_per_token(logps_N, batch.reference_logps_N, config.kl_estimator)
    kl = (batch.weights_N * kl_N)[batch.is_trained_N].sum()
    return SummedLoss(
        total=loss.total + kl_coef * kl,
        units=loss.units,
        metrics={**loss.metrics, "kl_loss": kl_coef * kl.detach()},
    )
