"""Writes a model as a Hugging Face folder, from the parts that the ranks hold."""

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from alignflow.training.chat import ChatTokenizer
from alignflow.training.config import LoRAConfig
from alignflow.training.megatron.convert import Rule, Shard, conversion_rules
from alignflow.training.megatron.core import parallel_state
from alignflow.training.megatron.lora import adapted_linears
from alignflow.training.megatron.model import (
    PackedModel,
    trunk_parameters,
)
from alignflow.training.megatron.score_heads import (
    ATTRIBUTE_HEAD_FILE,
    REWARD_HEAD_FILE,
    AttributeHead,
    RewardHead,
)
from alignflow.training.megatron.weights import INDEX_FILE, SINGLE_FILE, Weights
from alignflow.training.tokenizer import TOKENIZER_FILES

ADAPTER_FOLDER = "adapter"
"""Subfolder for adapters: in the model's own folder transformers would add them once more."""

_MAX_FILE_BYTES = 5 * 10**9


def export_model(model: PackedModel, model_dir: Path, folder: Path) -> None:
    """Write weights, config and tokenizer files; called by all ranks.

    Adapters are merged into the weights, and written besides in PEFT's format, for the initial
    model.

    No process ever holds the whole model: the first rank of each pipeline stage gathers one file's
    tensors at a time from its tensor-parallel ranks and writes that file.

    Args:
        model: This rank's part.
        model_dir: Folder of the initial model, whose config and tokenizer are copied.
        folder: Where to write; made where it isn't there.
    """
    is_main = dist.get_rank() == 0
    if is_main:
        folder.mkdir(parents=True, exist_ok=True)
    dist.barrier()
    if _replica() == 0:
        files = _plan_files(model)
        for file in files:
            if file.stage == parallel_state.get_pipeline_model_parallel_rank():
                _write_file(model, file, model_dir, folder)
        if is_main and len(files) > 1:
            _write_index(files, folder)
        if model.lora is not None:
            _write_adapters(model, model.lora, folder / ADAPTER_FOLDER)
    for kind, name in ((RewardHead, REWARD_HEAD_FILE), (AttributeHead, ATTRIBUTE_HEAD_FILE)):
        if isinstance(getattr(model, "output_layer", None), kind) and _is_first_of_stage():
            head = model.output_layer.weight.detach().cpu().contiguous()
            save_file({"weight": head}, folder / name)
    if is_main:
        _write_configs(model.config.params_dtype, model_dir, folder)
        for name in TOKENIZER_FILES:
            if (model_dir / name).is_file():
                shutil.copyfile(model_dir / name, folder / name)
    dist.barrier()


@dataclass(frozen=True)
class _File:
    """One file of weights: the parameters of one pipeline stage, or some of them."""

    name: str
    stage: int
    rules: dict[str, Rule]
    num_bytes: int


def _plan_files(model: PackedModel) -> list[_File]:
    """Return the files of the whole model; every rank comes to the same answer."""
    architecture, element_size = model.architecture, model.config.params_dtype.itemsize
    groups: list[tuple[int, dict[str, Rule], int]] = []
    for name, rule in conversion_rules(architecture).items():
        if name == "output_layer.weight" and architecture.has_tied_embeddings:
            continue
        stage = _stage_of(name, architecture.num_layers, model.config.pipeline_model_parallel_size)
        num_bytes = sum(math.prod(shape) for shape in rule.shapes.values()) * element_size
        if not groups or groups[-1][0] != stage or groups[-1][2] + num_bytes > _MAX_FILE_BYTES:
            groups.append((stage, {}, 0))
        _, rules, so_far = groups[-1]
        groups[-1] = (stage, {**rules, name: rule}, so_far + num_bytes)
    if len(groups) == 1:
        return [_File(SINGLE_FILE, *groups[0])]
    return [
        _File(f"model-{number:05}-of-{len(groups):05}.safetensors", *group)
        for number, group in enumerate(groups, start=1)
    ]


def _stage_of(name: str, num_layers: int, num_stages: int) -> int:
    if name.startswith("embedding."):
        return 0
    if name.startswith("decoder.layers."):
        return int(name.split(".")[2]) // (num_layers // num_stages)
    return num_stages - 1


def _write_file(model: PackedModel, file: _File, model_dir: Path, folder: Path) -> None:
    """Gather the file's parameters on the stage's first rank, which writes them."""
    parameters, adapted = trunk_parameters(model), adapted_linears(model)
    tensors: dict[str, Tensor] = {}
    for name, rule in file.rules.items():
        if name in adapted:
            parts = _gathered(adapted[name].merged_weight())
        elif name in parameters:
            parts = _gathered(parameters[name].detach())
        else:
            # A reward model has no use for the output layer; the folder stays a whole model.
            parts = [rule.read(Weights.of_folder(model_dir), Shard(rank=0, size=1))]
        if parts:
            tensors |= {n: t.to(model.config.params_dtype) for n, t in rule.write(parts).items()}
    if tensors and _is_first_of_stage():
        contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
        save_file(contiguous, folder / file.name, metadata={"format": "pt"})


def _is_first_of_stage() -> bool:
    return (_replica(), parallel_state.get_tensor_model_parallel_rank()) == (0, 0)


def _replica() -> int:
    """Return the number of this rank among those that hold the same parameters."""
    number: int = parallel_state.get_data_parallel_rank(with_context_parallel=True)
    return number


def _gathered(part: Tensor) -> list[Tensor]:
    """Return the parts of all tensor-parallel ranks on the CPU; [] on all but the first."""
    group = parallel_state.get_tensor_model_parallel_group()
    is_first = dist.get_rank(group) == 0
    parts = [torch.empty_like(part) for _ in range(group.size())] if is_first else None
    dist.gather(part.contiguous(), parts, dst=dist.get_global_rank(group, 0), group=group)
    return [held.cpu() for held in parts or []]


def _write_adapters(model: PackedModel, lora: LoRAConfig, folder: Path) -> None:
    """Gather all adapters on the job's first rank, which writes them as PEFT does."""
    own: dict[str, Tensor] = {}
    for linear in adapted_linears(model).values():
        adapter = linear.adapter
        parts_a, parts_b = _gathered(adapter.a.detach()), _gathered(adapter.b.detach())
        if parts_a:
            own |= adapter.layout.unfused(parts_a, parts_b)
    if parallel_state.get_tensor_model_parallel_rank() != 0:
        return
    is_main = dist.get_rank() == 0
    stages = [own] * parallel_state.get_pipeline_model_parallel_world_size()
    dist.gather_object(
        own,
        stages if is_main else None,
        dst=parallel_state.get_pipeline_model_parallel_first_rank(),
        group=parallel_state.get_pipeline_model_parallel_group(),
    )
    if is_main:
        folder.mkdir(exist_ok=True)
        tensors = {name: tensor.contiguous() for stage in stages for name, tensor in stage.items()}
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        _write_json(folder / "adapter_config.json", _peft_config(lora))


def _peft_config(lora: LoRAConfig) -> dict[str, Any]:
    """Return what PEFT has to know; the initial model isn't named, whose path means nothing later.

    PEFT adds `lora_alpha / r` times the product, as we do.
    """
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "target_modules": list(lora.targets),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }


def _write_index(files: list[_File], folder: Path) -> None:
    weight_map = {
        name: file.name for file in files for rule in file.rules.values() for name in rule.shapes
    }
    index = {
        "metadata": {"total_size": sum(file.num_bytes for file in files)},
        "weight_map": weight_map,
    }
    _write_json(folder / INDEX_FILE, index)


def _write_configs(dtype: torch.dtype, model_dir: Path, folder: Path) -> None:
    """Write config and generation config, which make answers end where training ended them."""
    end = _end_of_turn(model_dir)
    config = _read_json(model_dir / "config.json")
    config.pop("torch_dtype", None)  # what transformers called it before version 5
    config["dtype"] = str(dtype).removeprefix("torch.")
    _write_json(folder / "config.json", _ending_with(config, end))
    if (model_dir / "generation_config.json").is_file():
        generation = _read_json(model_dir / "generation_config.json")
        _write_json(folder / "generation_config.json", _ending_with(generation, end))


def _end_of_turn(model_dir: Path) -> int | None:
    """Return the token that ends an answer in the chat template, None without a tokenizer."""
    if not (model_dir / "tokenizer.json").is_file():
        return None
    return ChatTokenizer.load(model_dir).end_of_turn_token


def _ending_with(config: dict[str, Any], end: int | None) -> dict[str, Any]:
    """Return the config with a token among those that end a text."""
    known = config.get("eos_token_id")
    ends = known if isinstance(known, list) else [known] if known is not None else []
    if end is None or end in ends:
        return config
    return {**config, "eos_token_id": [*ends, end] if ends else end}


def _read_json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
