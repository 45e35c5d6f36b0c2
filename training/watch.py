"""What a sequence of validations says: which was the best, and whether the reward is hacked."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from alignflow.training.errors import RewardHackingError

_REMEDIES = {
    "margin": "raise beta, or train less",
    "reward": "raise kl_coef, train less, or look at what the reward model rewards",
}


@dataclass(frozen=True)
class Validation:
    """Means over held-out rows or responses after some step."""

    step: int
    metrics: dict[str, float]
    """`loss` and the metrics of the objective, or what PPO measures."""


def best_step(validations: Sequence[Validation]) -> int | None:
    """Return the step of the lowest loss, the earliest of equal ones; None without validations.

    The model before its first step takes no part: a stage that hands on its parent did nothing.
    """
    trained = [validation for validation in validations if validation.step > 0]
    if not trained:
        return None
    return min(trained, key=lambda validation: validation.metrics["loss"]).step


def num_without_gain(validations: Sequence[Validation]) -> int:
    """Return how many validations have followed the one that `best_step` names."""
    best = best_step(validations)
    return 0 if best is None else sum(validation.step > best for validation in validations)


def most_accurate_step(validations: Sequence[Validation]) -> int | None:
    """Return the step of the highest accuracy, the earliest of equal ones; None without one."""
    measured = [validation for validation in validations if "accuracy" in validation.metrics]
    if not measured:
        return None
    return max(measured, key=lambda validation: validation.metrics["accuracy"]).step


def check_reward_hacking(
    validations: Sequence[Validation],
    *,
    reward: Literal["margin", "reward"],
    max_accuracy_drop: float | None,
    patience: int,
) -> None:
    """Stop where the latest validations agree that the reward has left its purpose behind.

    A validation says so if its accuracy is further below the best one so far than allowed while its
    reward is larger than at that best: over-optimisation (arXiv:2210.10760). In DPO the reward is
    the margin between chosen and rejected, which the model widens on some pairs at the cost of
    others; in PPO it is what the reward model gives the policy's responses.

    Args:
        validations: In the order of their steps, with `accuracy` and the reward.
        reward: Name of the reward.
        max_accuracy_drop: Share of the pairs; None lets everything pass.
        patience: How many in a row must say so.

    Raises:
        RewardHackingError: They do.
    """
    if max_accuracy_drop is None or not validations:
        return
    best_at = most_accurate_step(validations)
    best = next(validation for validation in validations if validation.step == best_at)
    later = [validation for validation in validations if validation.step > best.step][-patience:]
    if len(later) < patience or not all(
        best.metrics["accuracy"] - validation.metrics["accuracy"] > max_accuracy_drop
        and validation.metrics[reward] > best.metrics[reward]
        for validation in later
    ):
        return
    last = later[-1]
    raise RewardHackingError(
        f"Reward hacking: from step {best.step} to step {last.step} the held-out accuracy fell "
        f"from {best.metrics['accuracy']:.4g} to {last.metrics['accuracy']:.4g}, past "
        f"max_accuracy_drop {max_accuracy_drop:g}, while the {reward} grew from "
        f"{best.metrics[reward]:.4g} to {last.metrics[reward]:.4g}; {_REMEDIES[reward]}.",
        since_step=best.step,
    )
