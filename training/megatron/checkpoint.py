"""Checkpoints that a killed job resumes from: Megatron's distributed format.

One that was saved under one layout can be loaded under another, sharded optimizer or not being the
same; then the ranks' random states stay as they are, which no training step draws from.
"""

import json
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import save as write_state

from alignflow.errors import DataError
from alignflow.training.megatron.core import (
    DistributedDataParallel,
    MCoreSavePlanner,
    MegatronOptimizer,
    OptimizerParamScheduler,
    ShardedTensor,
    TorchDistSaveShardedStrategy,
    _replace_state_dict_keys_with_sharded_keys,
    dist_checkpointing,
    mcore_to_pyt_state_dict,
    parallel_state,
)
from alignflow.training.megatron.optimizer import torch_adams

_STATE_FILE = "state.json"

# Every parameter has its moments in its own shape, whatever the data-parallel size was; they are
# gathered on the first data-parallel rank alone, so that the others hold no copy of them all.
_METADATA = {
    "distrib_optim_sharding_type": "fully_reshardable",
    "distrib_optim_fully_reshardable_mem_efficient": True,
}


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
        sharded_strategy=_SaveInThisProcess("torch_dist", 1),
    )
    if is_main:
        record = {"schedule": scheduler.state_dict(), "state": state, "layout": _layout()}
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
        schedule, state, layout = record["schedule"], record["state"], record["layout"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder}: not a whole checkpoint ({error!r}).") from None
    wanted = _sharded_state(model, optimizer, is_loading=True)
    if layout != _layout():
        del wanted["random"]
    with warnings.catch_warnings():
        # Megatron reads its format by what torch.distributed.checkpoint now deprecates.
        warnings.filterwarnings("ignore", "`load_state_dict` is deprecated", FutureWarning)
        warnings.filterwarnings("ignore", "Please use DTensor instead", FutureWarning)
        loaded = dist_checkpointing.load(wanted, str(folder))
    model.module.load_state_dict(loaded["model"], strict=True)
    _load_optimizer(optimizer, loaded["optimizer"])
    scheduler.num_steps = 0  # Megatron adds the steps of the checkpoint to those taken so far
    scheduler.load_state_dict(schedule)
    for device, random_state in loaded.get("random", {}).items():
        _set_random_state(device, random_state[0])
    restored: dict[str, Any] = state
    return restored


class _SaveInThisProcess(TorchDistSaveShardedStrategy):  # type: ignore[misc]
    """Megatron's format written by torch's own writer.

    Megatron's writer starts two processes that import the whole job again, 10 s on a busy machine,
    and forks a process with threads.
    """

    def save(self, sharded_state_dict: dict[str, Any], checkpoint_dir: Path) -> None:
        """Write this rank's tensors, and on rank 0 the metadata."""
        by_sharded_key, _, _ = _replace_state_dict_keys_with_sharded_keys(
            sharded_state_dict, self.keep_only_main_replica
        )
        write_state(
            mcore_to_pyt_state_dict(by_sharded_key, False),
            storage_writer=FileSystemWriter(checkpoint_dir, thread_count=1),
            planner=MCoreSavePlanner(dedup_replicated_tensors=False, flatten_state_dict=False),
        )


def _sharded_state(
    model: DistributedDataParallel, optimizer: MegatronOptimizer, *, is_loading: bool
) -> dict[str, Any]:
    _count_padding(optimizer)
    model_state = model.module.sharded_state_dict(metadata=dict(_METADATA))
    return {
        "model": model_state,
        "optimizer": optimizer.sharded_state_dict(
            model_state, is_loading=is_loading, metadata=dict(_METADATA)
        ),
        "random": {device: _sharded_by_rank(device) for device in _random_devices()},
    }


def _count_padding(optimizer: MegatronOptimizer) -> None:
    """Let Megatron's sharded optimizer lay its states out as they lie in its buffers.

    It leaves the padding at the end of each bucket out, but then looks parameters up where they are
    with it: all behind a first bucket would be saved shifted. Pipeline stages that share the
    embedding have two buckets.
    """
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        for buffer in getattr(part, "buffers", []):
            buffer.numel_unpadded = buffer.numel
            for bucket in buffer.buckets:
                bucket.numel_unpadded = bucket.grad_data.numel()


def _layout() -> list[int]:
    return [
        parallel_state.get_tensor_model_parallel_world_size(),
        parallel_state.get_pipeline_model_parallel_world_size(),
        parallel_state.get_context_parallel_world_size(),
        parallel_state.get_data_parallel_world_size(),
    ]


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
