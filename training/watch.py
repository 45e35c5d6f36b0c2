"""What a sequence of validations says: which was the best, and whether the reward is hacked."""

from collections.abc import Sequence
from dataclasses import dataclass

from alignflow.training.errors import RewardHackingError


@dataclass(frozen=True)
class Validation:
    """Means over the held-out rows after some step."""

    step: int
    metrics: dict[str, float]
    """`loss` and the metrics of the objective."""


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


def check_reward_hacking(
    validations: Sequence[Validation], *, max_accuracy_drop: float | None, patience: int
) -> None:
    """Stop where the latest validations agree that the reward has left its purpose behind.

    A validation says so if its accuracy is further below the best one so far than allowed while its
    margin, chosen less rejected reward, is larger than at that best: the model widens the margin of
    some pairs at the cost of others, which is over-optimisation (arXiv:2210.10760).

    Args:
        validations: In the order of their steps, with the metrics `accuracy` and `margin`.
        max_accuracy_drop: Share of the pairs; None lets everything pass.
        patience: How many in a row must say so.

    Raises:
        RewardHackingError: They do.
    """
    if max_accuracy_drop is None or not validations:
        return
    best = max(validations, key=lambda validation: validation.metrics["accuracy"])
    later = [validation for validation in validations if validation.step > best.step][-patience:]
    if len(later) < patience or not all(
        best.metrics["accuracy"] - validation.metrics["accuracy"] > max_accuracy_drop
        and validation.metrics["margin"] > best.metrics["margin"]
        for validation in later
    ):
        return
    last = later[-1]
    raise RewardHackingError(
        f"Reward hacking: from step {best.step} to step {last.step} the held-out accuracy fell "
        f"from {best.metrics['accuracy']:.4g} to {last.metrics['accuracy']:.4g}, past "
        f"max_accuracy_drop {max_accuracy_drop:g}, while the margin of rewards grew from "
        f"{best.metrics['margin']:.4g} to {last.metrics['margin']:.4g}; raise beta, or train less.",
        since_step=best.step,
    )
