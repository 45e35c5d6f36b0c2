"""Short rows in bf16 have a backward of their own: the gradients are those of torch's kernel."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from alignflow.training.config import ParallelConfig
from alignflow.training.megatron.architecture import read_architecture
from alignflow.training.megatron.attention import PackedAttention
from alignflow.training.megatron.model import build_model


@pytest.fixture
def layer(
    model_folder: Callable[[str], tuple[Path, PreTrainedModel]], device: torch.device
) -> PackedAttention:
    model = build_model(
        read_architecture(model_folder("llama2")[0]),
        head="lm",
        precision="fp32",
        parallel=ParallelConfig(),
        device=device,
    )
    core: PackedAttention = model.decoder.layers[0].self_attention.core_attention
    return core


def heads_of(length: int, *, seed: int = 0) -> list[Tensor]:
    """Query, key and value of two rows with 6 heads and 2 key-value heads, as Megatron's lie."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(2, length, heads, 16, generator=generator).bfloat16().transpose(1, 2)
        for heads in (6, 2, 2)
    ]


def leaves_of(inputs: list[Tensor]) -> list[Tensor]:
    return [tensor.detach().requires_grad_() for tensor in inputs]


def gradients(attend: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
    leaves = leaves_of(inputs)
    attended = attend(*leaves)
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(attended.shape, generator=generator).to(attended.dtype)
    return list(torch.autograd.grad(attended, leaves, weights))


def exact(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)


def distance(some: Tensor, other: Tensor) -> float:
    return float((some.double() - other).norm() / other.norm())


@pytest.mark.parametrize("length", [17, 64, 160])
def test_gradients_of_short_rows_are_as_exact_as_those_of_the_kernel(
    layer: PackedAttention, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = heads_of(length)
    assert type(layer.attend_causally(*leaves_of(inputs)).grad_fn).__name__ == "_ShortRowsBackward"
    mine = gradients(layer.attend_causally, inputs)
    monkeypatch.setattr(layer, "short_row", 0)
    kernel = gradients(layer.attend_causally, inputs)
    expected = gradients(exact, [tensor.double() for tensor in inputs])
    for a, b, c in zip(mine, kernel, expected, strict=True):
        # bf16 has 8 bits: 0.004 of a number may be rounded away.
        assert distance(a, c) < 0.006
        assert distance(a, c) < 1.5 * distance(b, c)


def test_other_rows_go_to_the_kernel(layer: PackedAttention) -> None:
    for inputs in (heads_of(161), [tensor.float() for tensor in heads_of(20)]):
        attended = layer.attend_causally(*leaves_of(inputs))
        assert type(attended.grad_fn).__name__ != "_ShortRowsBackward"
