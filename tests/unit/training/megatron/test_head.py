"""Log-probabilities of scored tokens against torch's softmax over all of them at once."""

import pytest
import torch
from torch import Tensor

from alignflow.training.megatron import head
from alignflow.training.megatron.kernels import EAGER

NUM_ENTRIES = 11


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden_NH = torch.randn(7, 5, generator=generator).to(dtype).requires_grad_()
    # Two more rows than entries, as a vocabulary that is filled up has.
    weight_VH = torch.randn(NUM_ENTRIES + 2, 5, generator=generator).to(dtype).requires_grad_()
    targets_N = torch.randint(NUM_ENTRIES, (7,), generator=generator)
    return hidden_NH, weight_VH, targets_N, torch.randn(7, generator=generator)


def scored(hidden_NH: Tensor, weight_VH: Tensor, targets_N: Tensor) -> Tensor:
    return head.scored_log_probabilities(
        hidden_NH,
        weight_VH,
        targets_N,
        num_entries=NUM_ENTRIES,
        temperature=0.7,
        kernels=EAGER,
    )


def all_at_once(hidden_NH: Tensor, weight_VH: Tensor, targets_N: Tensor) -> Tensor:
    logits_NV = hidden_NH @ weight_VH[:NUM_ENTRIES].t() / 0.7
    return torch.log_softmax(logits_NV, dim=-1).gather(1, targets_N[:, None])[:, 0]


@pytest.fixture(params=[(2**25, 2**27), (22, 2**27), (22, 22), (1, 0)], autouse=True)
def bounds(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """All at once, two rows at a time with all logits kept, with some kept, with none."""
    slice_elements, kept_elements = request.param
    monkeypatch.setattr(head, "_SLICE_ELEMENTS", slice_elements)
    monkeypatch.setattr(head, "_KEPT_ELEMENTS", kept_elements)


def test_values_and_gradients_are_those_of_the_softmax() -> None:
    hidden_NH, weight_VH, targets_N, grad_N = inputs()
    expected = all_at_once(hidden_NH, weight_VH, targets_N)
    expected_grads = torch.autograd.grad(expected, (hidden_NH, weight_VH), grad_N)
    found = scored(hidden_NH, weight_VH, targets_N)
    torch.testing.assert_close(found, expected)
    found_grads = torch.autograd.grad(found, (hidden_NH, weight_VH), grad_N)
    torch.testing.assert_close(found_grads, expected_grads)


def test_a_gradient_buffer_gets_the_weights_gradient_in_float32() -> None:
    hidden_NH, weight_VH, targets_N, grad_N = inputs(torch.bfloat16)
    exact = all_at_once(hidden_NH.float(), weight_VH.float(), targets_N)
    (expected,) = torch.autograd.grad(exact, weight_VH, grad_N)
    weight_VH.main_grad = torch.ones(weight_VH.shape)  # type: ignore[attr-defined]
    scored(hidden_NH, weight_VH, targets_N).backward(grad_N)  # type: ignore[no-untyped-call]
    assert weight_VH.grad is None
    added = weight_VH.main_grad - 1  # type: ignore[attr-defined]
    assert added.dtype == torch.float32
    torch.testing.assert_close(added, expected.float(), atol=0.05, rtol=0.02)


def test_a_frozen_weight_gets_no_gradient() -> None:
    hidden_NH, weight_VH, targets_N, grad_N = inputs()
    weight_VH.requires_grad_(False)
    scored(hidden_NH, weight_VH, targets_N).backward(grad_N)  # type: ignore[no-untyped-call]
    assert weight_VH.grad is None
    assert hidden_NH.grad is not None
