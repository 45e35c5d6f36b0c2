"""Rewards, advantages and the KL controller against numbers worked out by hand."""

import math

import pytest
import torch
from torch import Tensor

from alignflow.training.advantages import (
    adapted_kl_coef,
    explained_variance,
    gae_advantages,
    group_normalised,
    leave_one_out,
    row_sums,
    token_rewards,
    whitened,
)


def test_a_score_is_added_to_the_last_token_of_its_response() -> None:
    # Two responses of 2 and 1 tokens, a nat costs 0.5.
    rewards_N = token_rewards(
        torch.tensor([2.0, -1.0, 4.0]),
        torch.tensor([10.0, 20.0]),
        torch.tensor([2, 1]),
        kl_coef=0.5,
    )
    torch.testing.assert_close(rewards_N, torch.tensor([-1.0, 10.5, 18.0]))


def test_rewards_are_those_of_torchtune() -> None:
    # tests/torchtune/rlhf/test_rewards.py: log-probabilities 0.1, 0.2 and 0.3 nats below those of
    # the reference at each of three tokens, scores 1, 2 and 3, a coefficient of 0.5.
    kl_N = torch.tensor([-0.1] * 3 + [-0.2] * 3 + [-0.3] * 3)
    scores_B, lengths_B = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([3, 3, 3])
    expected_N = torch.tensor([0.05, 0.05, 1.05, 0.1, 0.1, 2.1, 0.15, 0.15, 3.15])
    torch.testing.assert_close(token_rewards(kl_N, scores_B, lengths_B, kl_coef=0.5), expected_N)


def test_sums_are_taken_over_the_tokens_of_each_response() -> None:
    sums_B = row_sums(torch.tensor([1.0, 2.0, 4.0, 8.0]), torch.tensor([1, 3]))
    torch.testing.assert_close(sums_B, torch.tensor([1.0, 14.0]))


class TestGAE:
    def test_advantages_are_the_hand_worked_ones(self) -> None:
        # d = .4-.5, .3-.4, 1-.3 = -.1, -.1, .7. A3 = .7, A2 = -.1+.95*.7 = .565,
        # A1 = -.1+.95*.565 = .43675. The other response: 2-1 = 1 alone.
        values_N = torch.tensor([0.5, 0.4, 0.3, 1.0])
        rewards_N = torch.tensor([0.0, 0.0, 1.0, 2.0])
        lengths_B = torch.tensor([3, 1])
        advantages_N = gae_advantages(rewards_N, values_N, lengths_B, discount=1.0, decay=0.95)
        torch.testing.assert_close(advantages_N, torch.tensor([0.43675, 0.565, 0.7, 1.0]))
        expected = torch.tensor([0.93675, 0.965, 1.0, 2.0])
        torch.testing.assert_close(advantages_N + values_N, expected)

    @pytest.mark.parametrize(("discount", "decay"), [(1.0, 0.95), (0.9, 0.8), (0.99, 1.0), (1, 0)])
    def test_advantages_equal_the_naive_ones(self, discount: float, decay: float) -> None:
        generator = torch.Generator().manual_seed(0)
        lengths = [5, 1, 8, 3]
        rewards_N, values_N = torch.randn(2, sum(lengths), generator=generator, dtype=torch.float64)
        expected: list[float] = []
        for rewards, values in zip(rewards_N.split(lengths), values_N.split(lengths), strict=True):
            expected += naive_gae(rewards, values, discount, decay)
        found_N = gae_advantages(
            rewards_N, values_N, torch.tensor(lengths), discount=discount, decay=decay
        )
        torch.testing.assert_close(found_N, torch.tensor(expected, dtype=torch.float64))

    def test_returns_are_those_of_torchtune(self) -> None:
        # Of the same file: nothing but a reward of 1 at the end, which the critic knows there.
        last_N = torch.tensor([0.0, 0.0, 0.0, 1.0])
        advantages_N = gae_advantages(last_N, last_N, torch.tensor([4]), discount=0.9, decay=0.95)
        expected_N = torch.tensor([0.9**3 * 0.95**2, 0.9**2 * 0.95, 0.9, 1.0])
        torch.testing.assert_close(advantages_N + last_N, expected_N)

    def test_at_decay_1_the_return_is_the_sum_of_what_follows(self) -> None:
        rewards_N, values_N = torch.tensor([[1.0, 2.0, 4.0], [9.0, -3.0, 7.0]])
        lengths_B = torch.tensor([3])
        advantages_N = gae_advantages(rewards_N, values_N, lengths_B, discount=1.0, decay=1.0)
        torch.testing.assert_close(advantages_N + values_N, torch.tensor([7.0, 6.0, 4.0]))


def naive_gae(rewards: Tensor, values: Tensor, discount: float, decay: float) -> list[float]:
    """Eq. 18 of arXiv:1506.02438 as it stands: the weighted mean of all k-step advantages."""
    length = len(rewards)
    advantages = []
    for t in range(length):
        total, weight = 0.0, 1.0
        for k in range(1, length - t + 1):
            rewarded = sum(discount**i * float(rewards[t + i]) for i in range(k))
            after = discount**k * float(values[t + k]) if t + k < length else 0.0
            k_step = rewarded + after - float(values[t])
            # From the end on all further k-step advantages are the same.
            is_last = t + k == length
            share = decay ** (k - 1) if is_last else (1 - decay) * decay ** (k - 1)
            total, weight = total + share * k_step, weight - share
        assert weight == pytest.approx(0, abs=1e-12)
        advantages.append(total)
    return advantages


class TestWhitening:
    def test_values_get_mean_0_and_deviation_1(self) -> None:
        # Mean 3, biased variance (4 + 0 + 4) / 3.
        found_N = whitened(torch.tensor([1.0, 3.0, 5.0]), torch.ones(3, dtype=torch.bool))
        deviation = math.sqrt(8 / 3)
        torch.testing.assert_close(found_N, torch.tensor([-2 / deviation, 0.0, 2 / deviation]))

    def test_a_masked_token_changes_nothing(self) -> None:
        is_counted_N = torch.tensor([True, False, True])
        first = whitened(torch.tensor([1.0, 7.0, 5.0]), is_counted_N)
        second = whitened(torch.tensor([1.0, 1e5, 5.0]), is_counted_N)
        torch.testing.assert_close(first[is_counted_N], torch.tensor([-1.0, 1.0]))
        assert torch.equal(first[is_counted_N], second[is_counted_N])

    def test_without_counted_tokens_nothing_changes(self) -> None:
        values_N = torch.tensor([1.0, 7.0])
        assert torch.equal(whitened(values_N, torch.zeros(2, dtype=torch.bool)), values_N)


class TestGroups:
    def test_a_baseline_is_the_mean_of_the_others(self) -> None:
        # 1 - (2+6)/2, 2 - (1+6)/2, 6 - (1+2)/2.
        found_PK = leave_one_out(torch.tensor([[1.0, 2.0, 6.0], [5.0, 5.0, 5.0]]))
        torch.testing.assert_close(found_PK, torch.tensor([[-3.0, -1.5, 4.5], [0.0, 0.0, 0.0]]))

    def test_a_group_is_normalised_by_its_own_mean_and_deviation(self) -> None:
        # Mean 3, unbiased variance (4 + 1 + 9) / 2 = 7.
        rewards_PK = torch.tensor([[1.0, 2.0, 6.0], [5.0, 5.0, 5.0]])
        scale = math.sqrt(7) + 1e-4
        expected = torch.tensor([[-2 / scale, -1 / scale, 3 / scale], [0.0, 0.0, 0.0]])
        torch.testing.assert_close(group_normalised(rewards_PK, divide_by_std=True), expected)
        centred = torch.tensor([[-2.0, -1.0, 3.0], [0.0, 0.0, 0.0]])
        torch.testing.assert_close(group_normalised(rewards_PK, divide_by_std=False), centred)


@pytest.mark.parametrize(
    ("kl_nats", "expected"),
    [
        (6.6, 0.15 * (1 + 0.1 * 0.05)),  # 10 % past the target
        (60.0, 0.15 * (1 + 0.2 * 0.05)),  # the error is clipped
        (0.0, 0.15 * (1 - 0.2 * 0.05)),
        (6.0, 0.15),
    ],
)
def test_kl_coef_follows_the_target(kl_nats: float, expected: float) -> None:
    found = adapted_kl_coef(0.15, kl_nats, target_nats=6.0, horizon=10_000, num_responses=500)
    assert found == pytest.approx(expected)


def test_explained_variance_of_a_perfect_a_constant_and_a_useless_critic() -> None:
    returns_N = torch.tensor([1.0, 2.0, 3.0])
    assert explained_variance(returns_N + 5, returns_N) == 1
    assert explained_variance(torch.zeros(3), returns_N) == 0
    assert explained_variance(-returns_N, returns_N) == -3
    assert explained_variance(torch.zeros(3), torch.ones(3)) == 0
