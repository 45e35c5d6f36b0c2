"""What a rollout shows about the policy, and the bounds that it may not pass."""

from torch import Tensor

from alignflow.training.advantages import explained_variance, row_sums
from alignflow.training.config import PPOConfig, Precision
from alignflow.training.errors import (
    KLBoundError,
    LengthBoundError,
    RatioMismatchError,
    ReferenceMismatchError,
    SamplerMismatchError,
)
from alignflow.training.experience import Experience
from alignflow.training.losses import kl_per_token
from alignflow.training.rollout import Rollout

Metrics = dict[str, float]

_RATIO_TOLERANCE = 1e-3
_REFERENCE_TOLERANCE: dict[Precision, float] = {"fp32": 1e-5, "bf16": 1e-3}
"""How far a token's log-probability may be from the reference's before the first update."""


def response_metrics(rollout: Rollout, rewards_B: Tensor) -> Metrics:
    """Return what can be said without the policy's log-probabilities, as means over responses.

    `score` is what the reward model says, and `reward` that, or what a response gets for want of an
    end; `ended` is the share that ended by itself.
    """
    return {
        "reward": float(rewards_B.mean()),
        "score": float(rollout.scores_B.mean()),
        "reward_std": float(rewards_B.std(correction=0)),
        "response_tokens": float(rollout.lengths_B.double().mean()),
        "ended": float(rollout.has_ended_B.double().mean()),
    }


def experience_metrics(experience: Experience) -> Metrics:
    """Return what a rollout shows before anything is learnt from it.

    `kl_nats` and `kl_k3_nats` are means over responses of their divergence from the reference, by
    the estimators k1 and k3 summed over tokens; k1 may be negative, but for long only where
    sampling is not what it should be. `entropy` is the mean over tokens of -log p, and
    `sampler_delta` that of the difference between sampling and training, all in nats.
    """
    rollout, models = experience.rollout, experience.models
    old_N, reference_N = models.old_logps_N, models.reference_logps_N
    kl_B, k3_B = (
        row_sums(kl_per_token(old_N, reference_N, estimator), rollout.lengths_B)
        for estimator in ("k1", "k3")
    )
    metrics = {
        **response_metrics(rollout, experience.rewards_B),
        "kl_nats": float(kl_B.mean()),
        "kl_k3_nats": float(k3_B.mean()),
        "entropy": float(-old_N.mean()),
        "sampler_delta": float((old_N - rollout.sampler_logps_N).abs().mean()),
    }
    if models.values_N is not None and experience.returns_N is not None:
        metrics["explained_variance"] = explained_variance(models.values_N, experience.returns_N)
        metrics["value"] = float(models.values_N.mean())
    return metrics


def check_rollout(metrics: Metrics, config: PPOConfig, *, first_response_tokens: float) -> None:
    """Stop before a rollout is learnt from that nothing good can be learnt from.

    Args:
        metrics: As `experience_metrics` gives them.
        config: The bounds.
        first_response_tokens: Mean length of the responses of the first rollout.

    Raises:
        SamplerMismatchError: Sampling and training disagree about the responses.
        KLBoundError: The policy is too far from its reference.
        LengthBoundError: Responses have become much longer or shorter.
    """
    # Each is written so that NaN fails too.
    if not metrics["sampler_delta"] <= config.max_sampler_delta:
        raise SamplerMismatchError(
            f"The log-probability of a token differs between sampling and training by "
            f"{metrics['sampler_delta']:.4g} nats on average, past max_sampler_delta "
            f"{config.max_sampler_delta:g}."
        )
    if not metrics["kl_nats"] <= config.max_kl_nats:
        raise KLBoundError(
            f"A response is {metrics['kl_nats']:.4g} nats from the initial policy on average, past "
            f"max_kl_nats {config.max_kl_nats:g}; raise kl_coef or lower learning_rate."
        )
    ratio = metrics["response_tokens"] / first_response_tokens
    if not 1 / config.max_length_ratio <= ratio <= config.max_length_ratio:
        raise LengthBoundError(
            f"A response has {metrics['response_tokens']:.4g} tokens on average, after "
            f"{first_response_tokens:.4g} in the first rollout: past max_length_ratio "
            f"{config.max_length_ratio:g}; look at what the reward model rewards."
        )


def check_reference(experience: Experience, precision: Precision) -> None:
    """Stop unless the policy before its first update is the reference.

    Raises:
        ReferenceMismatchError: It isn't.
    """
    models = experience.models
    delta = float((models.old_logps_N - models.reference_logps_N).abs().mean())
    if not delta <= _REFERENCE_TOLERANCE[precision]:
        raise ReferenceMismatchError(
            f"Before the first update a token's log-probability differs by {delta:.4g} nats on "
            "average between policy and reference, which should be the same model."
        )


def check_ratio(metrics: Metrics) -> None:
    """Stop unless the first update from a rollout sees the policy that sampled it.

    Args:
        metrics: Of that update; its ratio was computed before the weights moved.

    Raises:
        RatioMismatchError: The mean ratio isn't 1.
    """
    if not abs(metrics["ratio"] - 1) <= _RATIO_TOLERANCE:
        raise RatioMismatchError(
            f"The first ratio of a rollout is {metrics['ratio']:.6f}, not 1: the policy that "
            "learns is not the one whose log-probabilities were kept."
        )
