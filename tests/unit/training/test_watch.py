import pytest

from alignflow.training.errors import RewardHackingError
from alignflow.training.watch import (
    Validation,
    best_step,
    check_reward_hacking,
    most_accurate_step,
    num_without_gain,
)


def of_losses(*losses: float) -> list[Validation]:
    """Validations after steps 0, 10, 20, …"""
    return [Validation(10 * i, {"loss": loss}) for i, loss in enumerate(losses)]


def of_rewards(*pairs: tuple[float, float]) -> list[Validation]:
    return [
        Validation(10 * i, {"loss": 0.0, "accuracy": accuracy, "margin": margin})
        for i, (accuracy, margin) in enumerate(pairs)
    ]


@pytest.mark.parametrize(
    ("losses", "best", "without_gain"),
    [
        ((), None, 0),
        ((3.0,), None, 0),  # the model before its first step is nobody's best
        ((1.0, 2.0), 10, 0),
        ((3.0, 2.0, 1.0), 20, 0),
        ((3.0, 1.0, 1.0, 1.5), 10, 2),  # no lower is no gain
        ((3.0, 1.0, 2.0, 0.5, 0.6), 30, 1),
    ],
)
def test_the_best_step_has_the_lowest_loss(
    losses: tuple[float, ...], best: int | None, without_gain: int
) -> None:
    assert best_step(of_losses(*losses)) == best
    assert num_without_gain(of_losses(*losses)) == without_gain


def test_a_margin_that_grows_while_accuracy_falls_is_reward_hacking() -> None:
    seen = of_rewards((0.5, 0.0), (0.8, 1.0), (0.7, 2.0), (0.6, 3.0), (0.65, 4.0))
    check_reward_hacking(seen, reward="margin", max_accuracy_drop=0.05, patience=4)
    with pytest.raises(
        RewardHackingError,
        match=r"from step 10 to step 40 .* from 0\.8 to 0\.65, .* grew from 1 to 4;",
    ) as caught:
        check_reward_hacking(seen, reward="margin", max_accuracy_drop=0.05, patience=3)
    assert caught.value.since_step == 10


def test_the_most_accurate_step_is_the_earliest_of_equal_ones() -> None:
    assert most_accurate_step(of_rewards((0.5, 0.0), (0.8, 1.0), (0.7, 2.0), (0.8, 3.0))) == 10
    assert most_accurate_step(of_losses(1.0, 2.0)) is None


@pytest.mark.parametrize(
    "seen",
    [
        of_rewards(),
        of_rewards((0.5, 0.0), (0.8, 1.0), (0.9, 2.0), (0.95, 3.0)),  # it learns
        of_rewards((0.5, 0.0), (0.8, 1.0), (0.7, 0.8), (0.6, 0.5)),  # worse, and claims no more
        of_rewards((0.5, 0.0), (0.8, 1.0), (0.78, 2.0), (0.76, 3.0)),  # within the bound
        of_rewards((0.5, 0.0), (0.8, 1.0), (0.6, 2.0), (0.78, 3.0)),  # not twice in a row
    ],
)
def test_what_is_no_reward_hacking_passes(seen: list[Validation]) -> None:
    check_reward_hacking(seen, reward="margin", max_accuracy_drop=0.05, patience=2)


def test_without_a_bound_everything_passes() -> None:
    seen = of_rewards((0.9, 0.0), (0.1, 9.0), (0.1, 9.0))
    check_reward_hacking(seen, reward="margin", max_accuracy_drop=None, patience=1)
