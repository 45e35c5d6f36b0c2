"""PPO, and REINFORCE and GRPO on the same loop."""

from typing import Annotated, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from alignflow.config import Config
from alignflow.training.config.sampling import SamplingConfig
from alignflow.training.config.watch import RewardWatchConfig


class GAEConfig(Config):
    """Generalised advantage estimates by a critic (arXiv:1506.02438): PPO proper."""

    name: Literal["gae"] = "gae"
    discount: Annotated[float, Field(gt=0, le=1)] = 1.0
    """gamma: what a reward is worth one token earlier."""
    decay: Annotated[float, Field(ge=0, le=1)] = 0.95
    """lambda: 0 trusts the critic, 1 the sampled rewards; 0.95 in OpenAI's code, TRL and
    NeMo-Aligner, 1 in OpenRLHF and verl."""
    whiten: bool = True
    """Give the advantages of a rollout mean 0 and standard deviation 1."""
    value_clip: PositiveFloat = 0.2
    """A value gains nothing by moving further than this from what it was at the rollout, in
    standard deviations of the reward; 0.2 in OpenAI's code, TRL and NeMo-Aligner, 0.5 in OpenRLHF
    and verl."""
    critic_learning_rate: PositiveFloat = 9e-6
    """Peak learning rate of the critic, which falls as the actor's does; 9e-6 in NeMo-Aligner and
    OpenRLHF."""
    critic_warmup_steps: NonNegativeInt = 0
    """Rollouts at the start from which the critic alone learns."""


class RLOOConfig(Config):
    """REINFORCE with the mean of a prompt's other responses as baseline (arXiv:2402.14740)."""

    name: Literal["rloo"] = "rloo"
    action: Literal["token", "response"] = "token"
    """What one action is: a token, each with a ratio and a clip of its own, as in PPO, or the whole
    response, as in the paper and in TRL. Its ratio is then the product of those of its tokens, and
    the loss a mean over responses: of larger gradients, by the length of a response."""


class GRPOConfig(Config):
    """Rewards normalised over the responses to a prompt (arXiv:2402.03300)."""

    name: Literal["grpo"] = "grpo"
    divide_by_std: bool = True
    """False only subtracts the mean (Dr. GRPO, arXiv:2503.20783)."""
    mean_over: Literal["tokens", "responses"] = "tokens"
    """What counts alike in the policy loss: every token of an update (DAPO, arXiv:2503.14476, and
    TRL), or every response, whose tokens then weigh less the more they are: the paper's own eq. 3,
    under which long responses that fail lose less by the token."""


class AdaptiveKLConfig(Config):
    """A KL coefficient that follows a target (arXiv:1909.08593, section 2.2)."""

    target_nats: PositiveFloat = 6.0
    """Wanted divergence of a response from the reference, summed over its tokens."""
    horizon: PositiveInt = 10_000
    """Responses over which the coefficient answers a large error in full."""


class PPOConfig(SamplingConfig, RewardWatchConfig):
    """Reinforcement learning from a reward model (arXiv:2203.02155), with or without a critic.

    A step is a rollout: responses are sampled and scored, then learnt from in several updates. Rows
    are prompts, those of the preference pairs, each once. Rewards are in standard deviations from
    the mean that the reward model's scale records.
    """

    stage: Literal["ppo"] = "ppo"
    estimator: Annotated[GAEConfig | RLOOConfig | GRPOConfig, Field(discriminator="name")] = (
        GAEConfig()
    )
    """How rewards become advantages; `gae` trains a critic, the others have none."""
    learning_rate: PositiveFloat = 1e-6
    """Peak learning rate of the actor; 9e-7 in NeMo-Aligner, 1e-6 in OpenRLHF, 3e-6 in TRL."""
    rollout_prompts: PositiveInt = 512
    """Prompts of a rollout over all ranks."""
    samples_per_prompt: PositiveInt = 1
    """Responses to each prompt; the estimators `rloo` and `grpo` compare them."""
    global_batch_size: PositiveInt = 64
    """Prompts of one update over all ranks, with all of their responses."""
    ppo_epochs: PositiveInt = 4
    """Passes over a rollout, each in an order of its own; 4 in OpenAI's code and TRL, 1 in
    NeMo-Aligner, OpenRLHF and torchtune."""
    min_new_tokens: NonNegativeInt = 0
    """Tokens of a response among which none may end it. Log-probabilities stay those of all
    tokens, as with top_k."""
    top_k: PositiveInt | None = None
    """Sample from the likeliest tokens only; None samples from all. Log-probabilities stay those
    of all tokens, as in NeMo-Aligner and as with `top_p`."""

    missing_end_reward: float | None = -1.0
    """Reward of a response that was cut before its end of turn, instead of the reward model's: -1
    in OpenAI's code, -3 in torchtune. None leaves it the reward model's."""
    learns_unended: bool = True
    """Whether the actor learns from such responses; NeMo-Aligner's doesn't. Critic, baselines and
    metrics count them either way."""

    kl_coef: NonNegativeFloat = 0.05
    """Price of a nat of divergence from the initial policy, in units of the reward: 0.05 in TRL,
    0.01 in NeMo-Aligner and OpenRLHF. Where it adapts, the first one."""
    kl_adaptation: AdaptiveKLConfig | None = None
    """How the coefficient follows a target; None keeps it fixed."""
    kl_estimator: Literal["k1", "k2", "k3", "abs"] = "k1"
    """Estimate of a token's divergence: `k1` in OpenAI's code and TRL, `abs` in NeMo-Aligner, `k3`
    in GRPO."""
    kl_placement: Literal["reward", "loss"] = "reward"
    """Subtract it from each token's reward, as PPO does, or add it to the policy loss, as GRPO."""
    ratio_clip: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """The policy gains nothing by making an action, of `rloo` perhaps a whole response, more than
    this share likelier or less likely."""

    max_kl_nats: PositiveFloat = 100.0
    """A mean divergence of a rollout's responses above this stops the job as diverged."""
    max_length_ratio: Annotated[float, Field(gt=1)] = 5.0
    """A mean response length of so many times that of the first rollout, or so small a part of it,
    stops the job as diverged."""

    @property
    def response_is_action(self) -> bool:
        """Whether the policy loss takes a response as one action, not each of its tokens."""
        return isinstance(self.estimator, RLOOConfig) and self.estimator.action == "response"

    @property
    def critic(self) -> GAEConfig | None:
        """The estimator if it has a critic."""
        return self.estimator if isinstance(self.estimator, GAEConfig) else None

    @model_validator(mode="after")
    def _a_response_can_end(self) -> Self:
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError("min_new_tokens must not exceed max_new_tokens")
        judges_ends = self.missing_end_reward is not None or not self.learns_unended
        if self.min_new_tokens == self.max_new_tokens and judges_ends:
            raise ValueError(
                "with min_new_tokens equal to max_new_tokens no response ends by itself: "
                "missing_end_reward must be null and learns_unended true"
            )
        return self

    @model_validator(mode="after")
    def _batches_fit_the_rollout(self) -> Self:
        if self.global_batch_size > self.rollout_prompts:
            raise ValueError("global_batch_size must not exceed rollout_prompts")
        if self.critic is None and self.samples_per_prompt < 2:
            raise ValueError(
                f"estimator {self.estimator.name} compares the responses to a prompt: "
                "samples_per_prompt must be at least 2"
            )
        return self

    @model_validator(mode="after")
    def _kl_has_a_gradient(self) -> Self:
        # In expectation the gradient of k1 is 0, and that of |k1| has nothing to do with KL.
        if self.kl_placement == "loss" and self.kl_estimator not in ("k2", "k3"):
            raise ValueError("kl_placement loss needs kl_estimator k2 or k3")
        if self.kl_adaptation is not None and not self.kl_coef:
            raise ValueError("kl_adaptation scales kl_coef, which must not be 0")
        return self

    @model_validator(mode="after")
    def _there_is_no_held_out_loss(self) -> Self:
        for name in ("early_stop_patience", "restore_best"):
            if getattr(self, name):
                raise ValueError(f"{name} goes by a held-out loss, which PPO has none of")
        return self
