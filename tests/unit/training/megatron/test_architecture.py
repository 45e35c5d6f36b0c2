import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from alignflow.errors import DataError
from alignflow.training.megatron.architecture import Rope, read_architecture

SHAPE = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LLAMA = {"model_type": "llama", **SHAPE}


def write(folder: Path, **changes: Any) -> Path:
    (folder / "config.json").write_text(json.dumps({**LLAMA, **changes}))
    return folder


def test_defaults_are_those_of_the_family(tmp_path: Path) -> None:
    found = read_architecture(write(tmp_path))
    assert (found.head_dim, found.num_kv_heads, found.norm_eps) == (8, 2, 1e-6)
    assert found.rope == Rope("default", 10000.0)
    assert (found.has_tied_embeddings, found.has_qkv_bias, found.has_qk_norm) == (False,) * 3
    assert found.sliding_window is None


def test_rope_is_read_as_older_exports_write_it(tmp_path: Path) -> None:
    found = read_architecture(write(tmp_path, rope_theta=500000.0, rope_scaling=LLAMA3_ROPE))
    assert found.rope == Rope("llama3", 500000.0, 8.0, 1.0, 4.0, 32)


def test_llama3_frequencies_equal_those_of_transformers() -> None:
    config = LlamaConfig(**SHAPE, rope_parameters={**LLAMA3_ROPE, "rope_theta": 500000.0})
    expected = LlamaForCausalLM(config).model.rotary_emb.inv_freq
    torch.testing.assert_close(Rope("llama3", 500000.0, 8.0, 1.0, 4.0, 32).frequencies(8), expected)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model_type": "gpt2"}, "'gpt2' can't be trained; supported: llama, mistral"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"mlp_bias": True}, "mlp_bias is True"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"attention_dropout": 0.1}, "attention_dropout is 0.1"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type 'dynamic'"),
        ({"num_hidden_layers": "two"}, "not a usable llama config"),
    ],
)
def test_a_model_that_would_come_out_wrong_is_refused(
    tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(DataError, match=says):
        read_architecture(write(tmp_path, **changes))


def test_mixed_attention_is_refused(tmp_path: Path) -> None:
    window = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
    with pytest.raises(DataError, match="layer_types mixes"):
        read_architecture(write(tmp_path, model_type="qwen2", **window))


@pytest.mark.parametrize("text", ["", "[]", '{"hidden_size": 4}'])
def test_a_file_that_is_no_config_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(DataError, match="not the config of a model"):
        read_architecture(tmp_path)


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_architecture(tmp_path)
