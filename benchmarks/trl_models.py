"""The models of a comparison as transformers loads them: a language model, or one with a head."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification


def language_model(folder: Path, dtype: torch.dtype) -> Any:
    """Return the model with weights of a type; bf16 training casts float32 ones as it computes."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


def value_model(folder: Path, dtype: torch.dtype) -> Any:
    """Return the model with the folder's reward head: a reward model, or a critic."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=dtype)
    with torch.no_grad():
        model.score.weight.copy_(load_file(folder / "reward_head.safetensors")["weight"])
    return model
