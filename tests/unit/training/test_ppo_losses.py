"""Clipped losses and divergence estimators against numbers worked out by hand and naive twins."""

import math

import pytest
import torch
from torch import Tensor

from alignflow.training.losses import SummedLoss, kl_per_token, policy_loss, value_loss

ALL = torch.ones(4, dtype=torch.bool)


def random_tokens(size: int, *, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """Log-probabilities, old ones near them (some beyond the clip) and advantages."""
    generator = torch.Generator().manual_seed(0)
    logps = -3 * torch.rand(size, generator=generator, dtype=dtype)
    old = logps + 0.4 * torch.randn(size, generator=generator, dtype=dtype)
    return logps, old, torch.randn(size, generator=generator, dtype=dtype)


def assert_adds_up(parts: list[SummedLoss], whole: SummedLoss) -> None:
    torch.testing.assert_close(sum(part.total for part in parts), whole.total)
    assert sum(int(part.units) for part in parts) == whole.units
    for name, expected in whole.metrics.items():
        torch.testing.assert_close(sum(part.metrics[name] for part in parts), expected)


class TestPolicy:
    def test_loss_is_the_hand_worked_sum(self) -> None:
        # Ratios 1, 1.5, 0.5, 1.5 at clip 0.2; advantages 2, 1, -1, -1.
        # -min: -2; -min(1.5, 1.2) = -1.2; -min(-0.5, -0.8) = 0.8; -min(-1.5, -1.2) = 1.5.
        logps_N = torch.tensor([1.0, 1.5, 0.5, 1.5]).log() - 1
        advantages_N = torch.tensor([2.0, 1.0, -1.0, -1.0])
        loss = policy_loss(logps_N, torch.full((4,), -1.0), advantages_N, ALL, clip=0.2)
        torch.testing.assert_close(loss.total, torch.tensor(-2 - 1.2 + 0.8 + 1.5))
        assert loss.units == 4
        torch.testing.assert_close(loss.metrics["ratio"], torch.tensor(4.5))
        # The second and the third are held back; the fourth is wrong and may go on moving.
        assert loss.metrics["clip_fraction"] == 2
        # ratio - 1 - log ratio.
        expected = 4.5 - 4 - (math.log(1.5) + math.log(0.5) + math.log(1.5))
        torch.testing.assert_close(loss.metrics["approx_kl"], torch.tensor(expected))

    def test_loss_of_the_old_policy_itself_is_minus_the_advantages(self) -> None:
        logps_N, _, advantages_N = random_tokens(9)
        loss = policy_loss(logps_N, logps_N, advantages_N, logps_N < 0, clip=0.2)
        torch.testing.assert_close(loss.total, -advantages_N.sum())
        assert loss.metrics["ratio"] == 9
        assert loss.metrics["approx_kl"] == loss.metrics["clip_fraction"] == 0

    def test_loss_equals_the_naive_one(self) -> None:
        logps_N, old_N, advantages_N = random_tokens(50)
        naive = 0.0
        for logp, old, advantage in zip(logps_N, old_N, advantages_N, strict=True):
            ratio = math.exp(logp - old)
            # Schulman's wording: no gain beyond 1 + clip if good, below 1 - clip if bad.
            gain = min(ratio, 1.3) if advantage > 0 else max(ratio, 0.7)
            naive -= gain * float(advantage)
        loss = policy_loss(logps_N, old_N, advantages_N, logps_N < 0, clip=0.3)
        assert float(loss.total) == pytest.approx(naive, rel=1e-12)

    @pytest.mark.parametrize("split", [1, 4, 8])
    def test_loss_adds_up_over_microbatches(self, split: int) -> None:
        tokens = (*random_tokens(8), torch.tensor([True, False] * 4))
        head, tail = (t[:split] for t in tokens), (t[split:] for t in tokens)
        parts = [policy_loss(*part, clip=0.2) for part in (head, tail)]
        assert_adds_up(parts, policy_loss(*tokens, clip=0.2))

    def test_a_masked_token_changes_nothing(self) -> None:
        logps_N, old_N, advantages_N = random_tokens(6)
        is_trained_N = torch.tensor([True, True, False, True, True, True])
        expected = policy_loss(
            logps_N[is_trained_N],
            old_N[is_trained_N],
            advantages_N[is_trained_N],
            ALL[:1].expand(5),
            clip=0.2,
        )
        advantages_N[2], logps_N[2], old_N[2] = 1e6, math.nan, -100.0
        found = policy_loss(logps_N.requires_grad_(), old_N, advantages_N, is_trained_N, clip=0.2)
        assert_adds_up([found], expected)
        torch.autograd.backward(found.total)
        assert logps_N.grad is not None
        assert logps_N.grad[2] == 0

    def test_responses_count_alike_under_weights_that_add_up_to_1(self) -> None:
        # Responses of 3, 1 and 2 tokens, the last not trained: the mean of two means.
        logps_N, old_N, advantages_N = random_tokens(6)
        weights_N = torch.tensor([1 / 3, 1 / 3, 1 / 3, 1, 1 / 2, 1 / 2])
        is_trained_N = torch.tensor([True, True, True, True, False, False])
        found = policy_loss(
            logps_N, old_N, advantages_N, is_trained_N, clip=0.2, weights_N=weights_N
        )
        rows = [slice(0, 3), slice(3, 4)]
        parts = [
            policy_loss(logps_N[s], old_N[s], advantages_N[s], is_trained_N[s], clip=0.2)
            for s in rows
        ]
        assert found.units == 2
        torch.testing.assert_close(found.total, sum(p.total / p.units for p in parts))
        for name, total in found.metrics.items():
            expected = sum(p.metrics[name] / p.units for p in parts)
            torch.testing.assert_close(total, expected, check_dtype=False)

    def test_gradient(self) -> None:
        logps_N, old_N, advantages_N = random_tokens(12)

        def total(logps_N: Tensor) -> Tensor:
            return policy_loss(logps_N, old_N, advantages_N, old_N < 1, clip=0.2).total

        assert torch.autograd.gradcheck(total, (logps_N.requires_grad_(),))

    def test_shapes_must_agree(self) -> None:
        with pytest.raises(ValueError, match="shapes differ"):
            policy_loss(torch.zeros(4), torch.zeros(4), torch.zeros(3), ALL, clip=0.2)


class TestValue:
    def test_loss_is_the_hand_worked_sum(self) -> None:
        # Old value 0, clip 0.2, return 1: a value of 0.5 counts as 0.2, of 0.1 as itself.
        # Return -1: 0.5 counts as itself, for it went the wrong way. (0.64+0.81+2.25+0)/2.
        values_N = torch.tensor([0.5, 0.1, 0.5, 0.0])
        returns_N = torch.tensor([1.0, 1.0, -1.0, 0.0])
        loss = value_loss(values_N, torch.zeros(4), returns_N, clip=0.2)
        torch.testing.assert_close(loss.total, torch.tensor((0.64 + 0.81 + 2.25) / 2))
        assert loss.units == 4
        assert loss.metrics["clip_fraction"] == 1

    @pytest.mark.parametrize("split", [1, 4, 8])
    def test_loss_adds_up_over_microbatches(self, split: int) -> None:
        tokens = random_tokens(8)
        head, tail = (t[:split] for t in tokens), (t[split:] for t in tokens)
        parts = [value_loss(*part, clip=0.3) for part in (head, tail)]
        assert_adds_up(parts, value_loss(*tokens, clip=0.3))

    def test_loss_equals_the_naive_one(self) -> None:
        values_N, old_N, returns_N = random_tokens(50)
        naive = 0.0
        for value, old, goal in zip(
            *(t.tolist() for t in (values_N, old_N, returns_N)), strict=True
        ):
            clipped = min(max(value, old - 0.3), old + 0.3)
            naive += 0.5 * max((value - goal) ** 2, (clipped - goal) ** 2)
        loss = value_loss(values_N, old_N, returns_N, clip=0.3)
        assert float(loss.total) == pytest.approx(naive, rel=1e-12)

    def test_rounding_is_not_taken_for_clipping(self) -> None:
        values_N, old_N, returns_N = random_tokens(1000, dtype=torch.float32)
        near_N = old_N + (values_N - old_N).clamp(-0.19, 0.19)
        assert value_loss(near_N, old_N, returns_N, clip=0.2).metrics["clip_fraction"] == 0

    def test_gradient(self) -> None:
        values_N, old_N, returns_N = random_tokens(12)

        def total(values_N: Tensor) -> Tensor:
            return value_loss(values_N, old_N, returns_N, clip=0.3).total

        assert torch.autograd.gradcheck(total, (values_N.requires_grad_(),))

    def test_shapes_must_agree(self) -> None:
        with pytest.raises(ValueError, match="shapes differ"):
            value_loss(torch.zeros(4), torch.zeros(1), torch.zeros(4), clip=0.2)


class TestKL:
    def test_estimates_are_the_hand_worked_ones(self) -> None:
        # Differences ln 2, 0 and -ln 2.
        logps_N = torch.tensor([2.0, 1.0, 0.5]).log()
        half = math.log(2)
        for estimator, expected in {
            "k1": [half, 0.0, -half],
            "k2": [half**2 / 2, 0.0, half**2 / 2],
            "k3": [0.5 - 1 + half, 0.0, 2 - 1 - half],
            "abs": [half, 0.0, half],
        }.items():
            found_N = kl_per_token(logps_N, torch.zeros(3), estimator)  # type: ignore[arg-type]
            torch.testing.assert_close(found_N, torch.tensor(expected))

    def test_means_of_the_unbiased_ones_are_the_divergence(self) -> None:
        # Weighted by the policy's own probabilities the mean is exact.
        policy_V = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
        reference_V = torch.tensor([0.2, 0.2, 0.6], dtype=torch.float64)
        divergence = (policy_V * (policy_V / reference_V).log()).sum()
        for estimator in ("k1", "k3"):
            estimates_V = kl_per_token(policy_V.log(), reference_V.log(), estimator)
            torch.testing.assert_close((policy_V * estimates_V).sum(), divergence)

    def test_shapes_must_agree(self) -> None:
        with pytest.raises(ValueError, match="logps_N"):
            kl_per_token(torch.zeros(2), torch.zeros(3), "k1")
