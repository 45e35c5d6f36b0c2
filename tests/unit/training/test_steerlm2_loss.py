import math

import pytest
import torch
from torch import Tensor

from alignflow.training.losses import SummedLoss, row_logps, steerlm2_loss


def logps(*, seed: int, prompts: int = 5, responses: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return -8 * torch.rand(prompts, responses, generator=generator, dtype=torch.float64)


def test_loss_is_the_hand_worked_divergence() -> None:
    # Target less sampler (0, ln 3): w = (1/4, 3/4). Policy less sampler (0, 0): b = (1/2, 1/2).
    # 1/4 ln(1/2) + 3/4 ln(3/2) = 0.1308 nats; 1 / (1/16 + 9/16) = 1.6 effective samples.
    sampler = torch.tensor([[-5.0, -7.0]])
    target = sampler + torch.tensor([[0.0, math.log(3)]])
    loss = steerlm2_loss(sampler - 2, sampler, target)
    expected = torch.tensor(0.25 * math.log(0.5) + 0.75 * math.log(1.5))
    torch.testing.assert_close(loss.total, expected)
    assert loss.units == 1
    torch.testing.assert_close(loss.metrics["uniform_kl"], expected)
    torch.testing.assert_close(loss.metrics["effective_samples"], torch.tensor(1.6))


def test_a_policy_that_is_the_sampler_weighs_all_responses_alike() -> None:
    sampler, target = logps(seed=0), logps(seed=1)
    loss = steerlm2_loss(sampler, sampler, target)
    torch.testing.assert_close(loss.total, loss.metrics["uniform_kl"])
    policy = sampler.clone().requires_grad_()
    steerlm2_loss(policy, sampler, target).total.backward()  # type: ignore[no-untyped-call]
    assert policy.grad is not None
    # b = 1/K, so the gradient is 1/K - w.
    torch.testing.assert_close(policy.grad, 0.25 - (target - sampler).softmax(1))


def test_gradient_is_that_of_the_paper() -> None:
    policy, sampler, target = logps(seed=0).requires_grad_(), logps(seed=1), logps(seed=2)
    steerlm2_loss(policy, sampler, target).total.backward()  # type: ignore[no-untyped-call]
    w, b = (target - sampler).softmax(1), (policy - sampler).softmax(1).detach()
    torch.testing.assert_close(policy.grad, -(w - b))


def test_at_the_target_there_is_nothing_to_learn() -> None:
    target = logps(seed=0).requires_grad_()
    loss = steerlm2_loss(target, logps(seed=1), target.detach())
    loss.total.backward()  # type: ignore[no-untyped-call]
    assert target.grad is not None
    torch.testing.assert_close(loss.total.detach(), torch.tensor(0.0, dtype=torch.float64))
    torch.testing.assert_close(target.grad, torch.zeros_like(target))


def test_constants_of_a_prompt_change_nothing() -> None:
    """What the target lacks to be a distribution, and P(a|x), are the same for all responses."""
    policy, sampler, target = (logps(seed=seed) for seed in range(3))
    shift = torch.arange(5.0, dtype=torch.float64)[:, None]
    loss = steerlm2_loss(policy, sampler, target)
    shifted = steerlm2_loss(policy - shift, sampler, target + 30 * shift)
    torch.testing.assert_close(shifted.total, loss.total)


def test_order_of_the_responses_changes_nothing() -> None:
    policy, sampler, target = (logps(seed=seed) for seed in range(3))
    order = [2, 0, 3, 1]
    turned = steerlm2_loss(policy[:, order], sampler[:, order], target[:, order])
    torch.testing.assert_close(turned.total, steerlm2_loss(policy, sampler, target).total)


def test_loss_equals_the_naive_version() -> None:
    policy, sampler, target = (logps(seed=seed) for seed in range(3))
    total = 0.0
    for q, q_, t in zip(policy.tolist(), sampler.tolist(), target.tolist(), strict=True):
        weights = [math.exp(a - b) for a, b in zip(t, q_, strict=True)]
        baselines = [math.exp(a - b) for a, b in zip(q, q_, strict=True)]
        for w, b in zip(weights, baselines, strict=True):
            w_, b_ = w / sum(weights), b / sum(baselines)
            total += w_ * math.log(w_ / b_)
    loss = steerlm2_loss(policy, sampler, target)
    assert float(loss.total) == pytest.approx(total, rel=1e-12)


@pytest.mark.parametrize("split", [0, 1, 4])
def test_loss_adds_up_over_microbatches(split: int) -> None:
    tensors = [logps(seed=seed) for seed in range(3)]
    whole = steerlm2_loss(*tensors)
    parts = [steerlm2_loss(*(t[part] for t in tensors)) for part in (slice(split), slice(split, 9))]

    def sums(loss: SummedLoss) -> Tensor:
        return torch.stack([loss.total, loss.units.double(), *loss.metrics.values()])

    torch.testing.assert_close(sums(parts[0]) + sums(parts[1]), sums(whole))


def test_tokens_that_are_not_scored_change_nothing() -> None:
    """Of a packed batch only scored tokens enter: rows of other lengths, and empty ones, are 0."""
    sampler, target = logps(seed=1, prompts=1, responses=2), logps(seed=2, prompts=1, responses=2)
    tokens = -torch.rand(5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    rows = torch.tensor([0, 0, 0, 1, 1])
    alone = row_logps(tokens, rows, 2).view(1, 2)
    padded = row_logps(tokens, rows, 7)[:2].view(1, 2)
    expected = steerlm2_loss(
        torch.stack([tokens[:3].sum(), tokens[3:].sum()])[None], sampler, target
    )
    for policy in (alone, padded):
        torch.testing.assert_close(steerlm2_loss(policy, sampler, target).total, expected.total)


def test_gradient_is_exact() -> None:
    sampler, target = logps(seed=1), logps(seed=2)
    assert torch.autograd.gradcheck(
        lambda policy: steerlm2_loss(policy, sampler, target).total,
        (logps(seed=0).requires_grad_(),),
    )


def test_weights_that_differ_by_hundreds_of_nats_stay_finite() -> None:
    policy = torch.tensor([[-500.0, -900.0, -20.0]]).requires_grad_()
    loss = steerlm2_loss(policy, torch.tensor([[-510.0, -300.0, -30.0]]), torch.zeros(1, 3))
    loss.total.backward()  # type: ignore[no-untyped-call]
    assert policy.grad is not None
    assert loss.total.isfinite()
    assert policy.grad.isfinite().all()


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="target_PK"):
        steerlm2_loss(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(3, 2))
