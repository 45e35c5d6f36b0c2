"""Lets megatron-core run where there is no CUDA: the one place that knows how.

Megatron-core names the CUDA device in a few dozen places that any backend could serve: scratch
tensors with `device="cuda"`, `torch.cuda.current_device()`, `Tensor.cuda()`, and the optimizer's
check that `Tensor.type()` starts with `torch.cuda.`. Inside `cuda_calls_on_cpu()` these mean the
CPU, and the random state of a CUDA device, which Megatron keeps beside the CPU's, is empty; outside
it nothing is changed, and with CUDA present it does nothing at all. Model, schedules, distributed
optimizer and checkpoints are Megatron's own, so a test on two CPU processes over gloo exercises
what runs on a cluster.

It costs about 2.4 microseconds a torch call, 8000 calls in a training step of 30 layers: 0.1 % of a
step of 2000 tokens through a model of 135 million parameters.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_CPU = torch.device("cpu")


@contextmanager
def cuda_calls_on_cpu() -> Iterator[None]:
    """Answer calls for the CUDA device with the CPU; may be nested and used as a decorator."""
    if torch.cuda.is_available():
        yield
        return
    from alignflow.training.megatron.core import tensor_parallel  # which imports this module

    with ExitStack() as restored_at_the_end:
        for owner, answers in ((torch.cuda, _ANSWERS), (tensor_parallel.random, _RANDOM_ANSWERS)):
            for name, answer in answers.items():
                restored_at_the_end.callback(setattr, owner, name, getattr(owner, name))
                setattr(owner, name, answer)
        with _CudaMeansCpu():
            yield


@contextmanager
def compile_nothing_on_cpu() -> Iterator[None]:
    """Leave functions that are decorated with `torch.compile` meanwhile as they are.

    Megatron decorates its fused kernels when it is imported, and the compiler that this imports
    takes a quarter of a job's start. Without CUDA none of the kernels is called.
    """
    if torch.cuda.is_available():
        yield
        return
    compiler = torch.compile
    setattr(torch, "compile", _uncompiled)  # noqa: B010 (its overloads are no type of ours)
    try:
        yield
    finally:
        torch.compile = compiler


def _uncompiled(function: Callable[..., Any] | None = None, **_: Any) -> Callable[..., Any]:
    """Stand for `torch.compile`, which decorates with and without arguments."""
    return _uncompiled if function is None else function


def _no_op(*_: Any, **__: Any) -> None:
    """Stand for a call that only waits for, or tidies up, a CUDA device."""


_ANSWERS: Mapping[str, Callable[..., Any]] = {
    "current_device": lambda: _CPU,
    # A function of its own each: the compiler has a table of what it knows of them.
    "current_stream": lambda *_: None,  # asked for by 0.19; waited on for CUDA graphs only
    "synchronize": lambda *_: None,
    "empty_cache": lambda: None,
}
_RANDOM_ANSWERS: Mapping[str, Callable[..., Any]] = {
    "_get_cuda_rng_state": lambda **_: torch.empty(0, dtype=torch.uint8),
    "_set_cuda_rng_state": _no_op,
}


class _CudaMeansCpu(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is torch.Tensor.cuda:
            return args[0]
        if func is torch.Tensor.type and len(args) == 1 and not kwargs:
            return func(*args).replace("torch.", "torch.cuda.", 1)
        if kwargs and _is_cuda(kwargs.get("device")):
            kwargs = {**kwargs, "device": _CPU}
        if func is torch.Tensor.to and len(args) > 1 and _is_cuda(args[1]):
            args = (args[0], _CPU, *args[2:])
        return func(*args, **(kwargs or {}))


def _is_cuda(device: object) -> bool:
    return isinstance(device, str | torch.device) and str(device).startswith("cuda")
