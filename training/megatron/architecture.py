"""Which models can be trained: a Hugging Face `config.json` read into the facts Megatron needs."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alignflow.errors import ConfigError, DataError
from alignflow.training.config import ParallelConfig

_FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
_ROPE_TYPES = ("default", "linear", "llama3")


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding; the fields after `factor` are those of Llama 3."""

    kind: str
    base: float
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192

    def frequencies(self, head_dim: int) -> Tensor:
        """Return the angle per position of each pair of channels, [head_dim / 2] float32."""
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
        frequencies = 1.0 / self.base**exponents
        if self.kind == "linear":
            return frequencies / self.factor
        if self.kind == "llama3":
            return self._llama3_scaled(frequencies)
        return frequencies

    def _llama3_scaled(self, frequencies: Tensor) -> Tensor:
        """Stretch long wavelengths by the factor, keep short ones, blend in between."""
        turns = self.original_max_positions * frequencies / (2 * math.pi)
        kept = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        kept = kept.clamp(0, 1)
        return kept * frequencies + (1 - kept) * frequencies / self.factor


@dataclass(frozen=True)
class Architecture:
    """A decoder of the Llama family: RMSNorm before each block, rotary embedding, gated SiLU."""

    family: str
    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_positions: int
    norm_eps: float
    rope: Rope
    has_tied_embeddings: bool
    has_qkv_bias: bool
    has_qk_norm: bool
    sliding_window: int | None
    """Keys that a query sees, itself included; None sees all before it."""


def check_positions(model_dir: Path, num_tokens: int, field: str) -> None:
    """Refuse sequences that are longer than a model's positions; reads its config alone.

    Args:
        model_dir: Hugging Face folder.
        num_tokens: Most tokens of a sequence.
        field: What of the configuration gives them.

    Raises:
        ConfigError: The model has fewer positions.
        DataError: The folder holds no model that is known.
    """
    positions = read_architecture(model_dir).max_positions
    if num_tokens > positions:
        raise ConfigError(
            f"{field}: {num_tokens} is more than the {positions} positions of the model in "
            f"{model_dir}; lower it."
        )


def check_layout(a: Architecture, parallel: ParallelConfig) -> None:
    """Refuse a layout over whose ranks the model doesn't split.

    Raises:
        ConfigError: Names the field, and what it doesn't divide.
    """
    tensor, pipeline = parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
    whole = {"attention heads": a.num_heads, "feed-forward channels": a.ffn_hidden_size}
    for what, count in whole.items():
        if count % tensor:
            raise ConfigError(
                f"parallel.tensor_model_parallel_size: {tensor} doesn't divide the model's "
                f"{count} {what}."
            )
    if a.num_kv_heads % tensor and tensor % a.num_kv_heads:
        raise ConfigError(
            f"parallel.tensor_model_parallel_size: {tensor} and the model's {a.num_kv_heads} "
            "key-value heads must divide one another."
        )
    context = parallel.context_parallel_size
    if context > 1 and a.num_kv_heads % (tensor * context):
        raise ConfigError(
            f"parallel.context_parallel_size: {context} doesn't divide the key-value heads of a "
            f"tensor-parallel rank, {a.num_kv_heads} over {tensor}."
        )
    if a.num_layers % pipeline:
        raise ConfigError(
            f"parallel.pipeline_model_parallel_size: {pipeline} doesn't divide the model's "
            f"{a.num_layers} layers."
        )


def read_architecture(model_dir: Path) -> Architecture:
    """Read the `config.json` of a Hugging Face folder.

    Raises:
        DataError: There is no such file, it isn't a model config, or the model differs from what
            can be trained; the message names the field.
    """
    path = model_dir / "config.json"
    family = _family(path)
    from transformers import AutoConfig  # a second to import, and it knows each family's defaults

    try:
        config = AutoConfig.from_pretrained(model_dir)
    except Exception as error:
        raise DataError(f"{path}: not a usable {family} config: {error}.") from error
    _refuse(path, config, family)
    return Architecture(
        family=family,
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        ffn_hidden_size=config.intermediate_size,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=getattr(config, "head_dim", None)
        or config.hidden_size // config.num_attention_heads,
        vocab_size=config.vocab_size,
        max_positions=config.max_position_embeddings,
        norm_eps=config.rms_norm_eps,
        rope=_rope(path, config.rope_parameters),
        has_tied_embeddings=config.tie_word_embeddings,
        has_qkv_bias=family == "qwen2",
        has_qk_norm=family == "qwen3",
        sliding_window=_sliding_window(path, config),
    )


def _family(path: Path) -> str:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        family = config["model_type"]
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; give a Hugging Face model folder.") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not the config of a model ({error!r}).") from None
    if family not in _FAMILIES:
        raise DataError(
            f"{path}: model_type {family!r} can't be trained; supported: {', '.join(_FAMILIES)}."
        )
    return str(family)


def _refuse(path: Path, config: Any, family: str) -> None:
    """Stop at a field whose value the model built here would silently ignore."""
    required = {
        "hidden_act": "silu",
        "mlp_bias": False,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "is_encoder_decoder": False,
    }
    for field, supported in required.items():
        value = getattr(config, field, supported)
        if value != supported:
            raise DataError(
                f"{path}: {field} is {value!r}; {family} models are supported with "
                f"{field} {supported!r} only."
            )


def _rope(path: Path, parameters: dict[str, Any]) -> Rope:
    kind = parameters.get("rope_type", "default")
    if kind not in _ROPE_TYPES:
        raise DataError(
            f"{path}: rope_type {kind!r} is not supported; supported: {', '.join(_ROPE_TYPES)}."
        )
    if parameters.get("partial_rotary_factor", 1.0) != 1.0:
        raise DataError(f"{path}: partial_rotary_factor must be 1; rotate whole heads.")
    base = float(parameters["rope_theta"])
    if kind == "llama3":
        return Rope(
            kind,
            base,
            factor=parameters["factor"],
            low_freq_factor=parameters["low_freq_factor"],
            high_freq_factor=parameters["high_freq_factor"],
            original_max_positions=parameters["original_max_position_embeddings"],
        )
    return Rope(kind, base, factor=parameters.get("factor", 1.0))


def _sliding_window(path: Path, config: Any) -> int | None:
    window: int | None = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ())
    if window is None or kinds == {"full_attention"}:
        return None
    if len(kinds) > 1:
        raise DataError(
            f"{path}: layer_types mixes {', '.join(sorted(kinds))}; "
            "one kind of attention in all layers is supported."
        )
    return window
