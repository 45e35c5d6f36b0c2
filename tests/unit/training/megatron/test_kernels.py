"""The compiled element-wise parts against what torch computes op by op."""

import shutil
from dataclasses import astuple, fields

import pytest
import torch
from torch import Tensor

from alignflow.errors import ConfigError
from alignflow.training.megatron import kernels
from alignflow.training.megatron.kernels import EAGER, Kernels, compiled_kernels


def arguments(name: str, length: int) -> tuple[object, ...]:
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    angles = drawn(length, 4, dtype=torch.float32)
    return {
        "rms_norm": (drawn(length, 16), drawn(16), 1e-5),
        "swiglu": (drawn(length, 32),),
        "rotated_rows": (
            drawn(9, 3, 8),
            torch.randint(9, (length,), generator=generator),
            angles.cos().bfloat16(),
            angles.sin().bfloat16(),
        ),
        "attention_probabilities": (
            drawn(6, length, length, dtype=torch.float32),
            drawn(6, length, dtype=torch.float32) + 5,
            0.125,
        ),
        "score_gradients": (
            drawn(6, length, length, dtype=torch.float32).exp(),
            drawn(6, length, length),
            drawn(6, length, 8),
            drawn(6, length, 8),
            0.125,
        ),
        "log_sums_exp": (drawn(length, 33), 0.7),
        "other_logit_gradients": (
            drawn(length, 33),
            drawn(length, dtype=torch.float32) + 6,
            drawn(length, dtype=torch.float32),
            0.7,
        ),
        "accumulate": (drawn(length, 3, dtype=torch.float32), drawn(length, 3)),
    }[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", [field.name for field in fields(Kernels)])
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
def test_a_compiled_kernel_is_the_same_function_at_every_length(name: str) -> None:
    for length in (6, 11):
        results = []
        for collection in (EAGER, compiled_kernels()):
            given = [a.clone() if isinstance(a, Tensor) else a for a in arguments(name, length)]
            returned = getattr(collection, name)(*given)
            results.append(given[0] if returned is None else returned)
        torch.testing.assert_close(results[1], results[0], atol=2e-2, rtol=2e-2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rms_norm", "swiglu"])
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
def test_a_compiled_kernel_has_the_same_gradient(name: str) -> None:
    gradients = []
    for collection in (EAGER, compiled_kernels()):
        given = [a.requires_grad_() if isinstance(a, Tensor) else a for a in arguments(name, 6)]
        output = getattr(collection, name)(*given)
        leaves = [a for a in given if isinstance(a, Tensor)]
        gradients.append(torch.autograd.grad(output.float().sin().sum(), leaves))
    torch.testing.assert_close(gradients[1], gradients[0], atol=3e-2, rtol=3e-2)


def test_rotating_back_gives_the_rows_again() -> None:
    rows = torch.randn(5, 2, 6)
    angles = torch.randn(5, 3)
    order = torch.arange(5)
    turned = EAGER.rotated_rows(rows, order, angles.cos(), angles.sin())
    assert not torch.allclose(turned, rows)
    torch.testing.assert_close(EAGER.rotated_rows(turned, order, angles.cos(), -angles.sin()), rows)


def test_a_quarter_turn_swaps_the_halves_of_a_head() -> None:
    quarter_cos, quarter_sin = torch.zeros(1, 1), torch.ones(1, 1)
    turned = EAGER.rotated_rows(
        torch.tensor([[[3.0, 5.0]]]), torch.tensor([0]), quarter_cos, quarter_sin
    )
    assert turned.tolist() == [[[-5.0, 3.0]]]


def test_compiling_without_a_compiler_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    compiled_kernels.cache_clear()
    with pytest.raises(ConfigError, match=r"install g\+\+"):
        compiled_kernels()


def test_every_function_is_among_the_kernels() -> None:
    assert all(function.__module__ == kernels.__name__ for function in astuple(EAGER))
