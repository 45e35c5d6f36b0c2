"""Checkpoints that a killed job resumes from: Megatron's distributed format."""

import json
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from alignflow.errors import DataError
from alignflow.training.megatron.core import (
    DistributedDataParallel,
    MegatronOptimizer,
    OptimizerParamScheduler,
    ShardedTensor,
    TorchDistSaveShardedStrategy,
    dist_checkpointing,
)
from alignflow.training.megatron.optimizer import torch_adams

_STATE_FILE = "state.json"

# Every parameter has its moments in its own shape, whatever the data-parallel size was.
_METADATA = {"distrib_optim_sharding_type": "fully_reshardable"}


def save(
    folder: Path,
    model: DistributedDataParallel,
    optimizer: MegatronOptimizer,
    scheduler: OptimizerParamScheduler,
    state: dict[str, Any],
) -> None:
    """Write model, optimizer, schedule, random states of all ranks, and a JSON-able state.

    Returns on every rank when all ranks have written. Called by all of them.
    """
    is_main = dist.get_rank() == 0
    if is_main:
        folder.mkdir(parents=True, exist_ok=True)
    dist.barrier()
    dist_checkpointing.save(
        _sharded_state(model, optimizer, is_loading=False),
        str(folder),
        sharded_strategy=TorchDistSaveShardedStrategy("torch_dist", 1, thread_count=1),
    )
    if is_main:
        record = {"schedule": scheduler.state_dict(), "state": state}
        (folder / _STATE_FILE).write_text(json.dumps(record), encoding="utf-8")
    dist.barrier()


def load(
    folder: Path,
    model: DistributedDataParallel,
    optimizer: MegatronOptimizer,
    scheduler: OptimizerParamScheduler,
) -> dict[str, Any]:
    """Set everything that `save` wrote and return the JSON-able state.

    Raises:
        DataError: The folder isn't a whole checkpoint.
    """
    try:
        record = json.loads((folder / _STATE_FILE).read_text(encoding="utf-8"))
        schedule, state = record["schedule"], record["state"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder}: not a whole checkpoint ({error!r}).") from None
    loaded = dist_checkpointing.load(_sharded_state(model, optimizer, is_loading=True), str(folder))
    model.module.load_state_dict(loaded["model"], strict=True)
    _load_optimizer(optimizer, loaded["optimizer"])
    scheduler.num_steps = 0  # Megatron adds the steps of the checkpoint to those taken so far
    scheduler.load_state_dict(schedule)
    for device, random_state in loaded["random"].items():
        _set_random_state(device, random_state[0])
    restored: dict[str, Any] = state
    return restored


def _sharded_state(
    model: DistributedDataParallel, optimizer: MegatronOptimizer, *, is_loading: bool
) -> dict[str, Any]:
    model_state = model.module.sharded_state_dict(metadata=dict(_METADATA))
    return {
        "model": model_state,
        "optimizer": optimizer.sharded_state_dict(
            model_state, is_loading=is_loading, metadata=dict(_METADATA)
        ),
        "random": {device: _sharded_by_rank(device) for device in _random_devices()},
    }


def _random_devices() -> tuple[str, ...]:
    return ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)


def _sharded_by_rank(device: str) -> ShardedTensor:
    """Return this rank's random state as its row of a tensor over all ranks."""
    state = torch.cuda.get_rng_state() if device == "cuda" else torch.get_rng_state()
    return ShardedTensor.from_rank_offsets(
        f"random.{device}", state[None], (0, dist.get_rank(), dist.get_world_size())
    )


def _set_random_state(device: str, state: torch.Tensor) -> None:
    if device == "cuda":
        torch.cuda.set_rng_state(state.cpu())
    else:
        torch.set_rng_state(state)


def _load_optimizer(optimizer: MegatronOptimizer, loaded: dict[str, Any]) -> None:
    """Restore the optimizer, around what Megatron's sharded one does to torch's Adam.

    It asks for a step count among the sharded tensors, where there is none, and would give all
    parameters one shared count, which each of them then raises.
    """
    adams = torch_adams(optimizer)
    sharded = loaded.pop("param_state", None)
    optimizer.load_state_dict(loaded)
    if sharded is None:
        return
    part = getattr(optimizer, "chained_optimizers", [optimizer])[0]
    steps = [(state, state.pop("step").clone()) for adam in adams for state in adam.state.values()]
    part.load_parameter_state_from_fully_reshardable(sharded)
    for state, step in steps:
        state["step"] = step
