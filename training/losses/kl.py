"""Per-token estimators of the divergence of a policy from a reference."""

from typing import Literal

from torch import Tensor

KLEstimator = Literal["k1", "k2", "k3", "abs"]


def kl_per_token(logps_N: Tensor, reference_N: Tensor, estimator: KLEstimator) -> Tensor:
    """Estimates of KL(policy || reference) at tokens that the policy sampled, [N], in nats.

    With d = log policy - log reference of the sampled token (http://joschu.net/blog/kl-approx.html)
    `k1` is d: unbiased, and negative half of the time. `k2` is d^2 / 2: biased, of low variance.
    `k3` is exp(-d) - 1 + d: unbiased and never negative. `abs` is |d|, which overestimates.

    Args:
        logps_N: [N], log-probabilities under the policy, in nats.
        reference_N: [N], the same under the reference.
        estimator: Which of them.

    Raises:
        ValueError: The two differ in shape.
    """
    if logps_N.shape != reference_N.shape:
        raise ValueError(f"{logps_N.shape=} but {reference_N.shape=}")
    delta_N = logps_N - reference_N
    match estimator:
        case "k1":
            return delta_N
        case "k2":
            return delta_N.square() / 2
        case "k3":
            return (-delta_N).expm1() + delta_N
        case "abs":
            return delta_N.abs()
