"""Process groups, model parallelism and seeds of a training process."""

import os
import warnings
from datetime import timedelta

import torch
import torch.distributed as dist

from alignflow.errors import ConfigError
from alignflow.training.config import ParallelConfig
from alignflow.training.megatron.core import parallel_state, tensor_parallel
from alignflow.training.megatron.cpu_host import cuda_calls_on_cpu

_TIMEOUT = timedelta(minutes=30)
_RANDOM_STATE = "model-parallel-rng"
_VECTOR_FUNCTIONS = (torch.cos, torch.sin, torch.exp, torch.log, torch.tanh, torch.sqrt, torch.erf)

# megatron-core's own calls of what torch or itself deprecates, and its way of setting gradients.
_KNOWN_WARNINGS = (
    r".*tp_group is None, using default tp group",
    r"MLP requires ffn_hidden_size",
    r"`torch\.distributed\.(all_gather_into_tensor|reduce_scatter_tensor)` is deprecated",
    r"The \.grad attribute of a Tensor that is not a leaf",
)


@cuda_calls_on_cpu()
def initialize(parallel: ParallelConfig, *, seed: int) -> torch.device:
    """Join the process group of the job and split it as configured; returns the rank's device.

    Rank and world size come from the environment that torchrun sets; without it the process is a
    group of its own. A process group or a model-parallel layout that is already there is kept.

    Raises:
        ConfigError: The layout needs another number of processes than there are, or isn't the one
            that is already there.
    """
    for message in _KNOWN_WARNINGS:
        warnings.filterwarnings("ignore", message)
    _settle_vector_functions()
    # Lets the gradients' all-reduce run beside matrix products; Megatron warns without it.
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    device = _local_device()
    _join_process_group(device)
    if dist.get_world_size() != parallel.world_size:
        raise ConfigError(
            f"parallel: tensor {parallel.tensor_model_parallel_size} x "
            f"pipeline {parallel.pipeline_model_parallel_size} x "
            f"data {parallel.data_parallel_size} x context {parallel.context_parallel_size} "
            f"needs {parallel.world_size} processes, but the job has {dist.get_world_size()}."
        )
    if parallel_state.model_parallel_is_initialized():
        _check_kept_layout(parallel)
    else:
        parallel_state.initialize_model_parallel(
            parallel.tensor_model_parallel_size,
            parallel.pipeline_model_parallel_size,
            context_parallel_size=parallel.context_parallel_size,
            distributed_timeout_minutes=int(_TIMEOUT.total_seconds() // 60),
        )
    torch.manual_seed(seed)
    if device.type == "cuda":
        tensor_parallel.model_parallel_cuda_manual_seed(seed)
    else:
        # Sequence parallelism asks for a state of this name, which is empty without CUDA.
        states = {_RANDOM_STATE: torch.empty(0, dtype=torch.uint8)}
        tensor_parallel.get_cuda_rng_tracker().set_states(states)
    return device


def shut_down() -> None:
    """Leave the model-parallel groups and the process group."""
    parallel_state.destroy_model_parallel()
    if dist.is_initialized():
        dist.destroy_process_group()


def _check_kept_layout(parallel: ParallelConfig) -> None:
    asked = (
        parallel.tensor_model_parallel_size,
        parallel.pipeline_model_parallel_size,
        parallel.context_parallel_size,
    )
    kept = (
        parallel_state.get_tensor_model_parallel_world_size(),
        parallel_state.get_pipeline_model_parallel_world_size(),
        parallel_state.get_context_parallel_world_size(),
    )
    if asked != kept:
        layouts = ["tensor {} x pipeline {} x context {}".format(*at) for at in (kept, asked)]
        raise ConfigError(
            f"parallel: this process is already laid out as {layouts[0]}, not as {layouts[1]}; "
            "shut that layout down first."
        )


def _settle_vector_functions() -> None:
    """Call MKL's vector functions from one thread before any two threads do.

    The first call in a process chooses the code for its processor. Where two threads make it at
    once, the share of one of them may come out up to 1.5e-4 off, and a job that is started again
    would not take the steps of the first one bit for bit.
    """
    for dtype in (torch.float32, torch.float64):
        # Too few numbers to be shared out among threads.
        numbers = torch.full((16,), 0.5, dtype=dtype)
        for function in _VECTOR_FUNCTIONS:
            function(numbers)


def _local_device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def _join_process_group(device: torch.device) -> None:
    if dist.is_initialized():
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    if "RANK" in os.environ:
        dist.init_process_group(backend, timeout=_TIMEOUT)
    else:
        # A store in memory: no port that a neighbour on the same machine could have taken.
        store = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=_TIMEOUT)
