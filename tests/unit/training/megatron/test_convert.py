import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from alignflow.errors import DataError
from alignflow.training.megatron.architecture import read_architecture
from alignflow.training.megatron.convert import (
    Shard,
    canonical_name,
    check_names,
    conversion_rules,
)
from alignflow.training.megatron.weights import Weights

ModelFolder = Callable[[str], tuple[Path, PreTrainedModel]]


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_the_parts_of_all_ranks_make_the_weights_again(
    model_folder: ModelFolder, family: str, size: int
) -> None:
    folder, _ = model_folder(family)
    weights = Weights.of_folder(folder)
    written: dict[str, torch.Tensor] = {}
    for rule in conversion_rules(read_architecture(folder)).values():
        parts = [rule.read(weights, Shard(rank, size)) for rank in range(size)]
        assert len({part.shape for part in parts}) == 1
        written |= rule.write(parts)
    expected = load_file(folder / "model.safetensors")
    assert written.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(written[name], tensor), name


def test_the_vocabulary_is_filled_up_with_zero_rows(model_folder: ModelFolder) -> None:
    folder, model = model_folder("llama2")
    rule = conversion_rules(read_architecture(folder))["embedding.word_embeddings.weight"]
    last = rule.read(Weights.of_folder(folder), Shard(1, 2))
    # 97 rows make 49 on each rank: the second holds rows 49 to 96, and one of padding.
    assert torch.equal(last[:48], model.get_input_embeddings().weight[49:])
    assert not last[48].any()


def test_shards_are_read_by_their_index(model_folder: ModelFolder, tmp_path: Path) -> None:
    _, model = model_folder("qwen2")
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    weights = Weights.of_folder(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    check_names(weights, read_architecture(tmp_path))
    for name, tensor in model.state_dict().items():
        assert torch.equal(weights.read(name, tuple(tensor.shape)), tensor)


def test_names_of_stages_and_of_transformer_engine_become_those_of_the_table() -> None:
    assert canonical_name("decoder.layers.1.mlp.linear_fc2.weight", 4) == (
        "decoder.layers.5.mlp.linear_fc2.weight"
    )
    assert canonical_name("decoder.layers.0.mlp.linear_fc1.layer_norm_weight", 0) == (
        "decoder.layers.0.pre_mlp_layernorm.weight"
    )
    assert canonical_name("output_layer.weight", 4) == "output_layer.weight"


@pytest.fixture
def copy(model_folder: ModelFolder, tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """Return a folder with a config and the weights to put into it."""
    folder, _ = model_folder("llama3-tied")
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    return tmp_path, load_file(folder / "model.safetensors")


def test_old_buffers_and_a_copy_of_tied_embeddings_are_passed_over(
    copy: tuple[Path, dict[str, torch.Tensor]],
) -> None:
    folder, tensors = copy
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(4)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, folder / "model.safetensors")
    check_names(Weights.of_folder(folder), read_architecture(folder))


def test_a_tensor_too_few_or_too_many_is_refused_by_name(
    copy: tuple[Path, dict[str, torch.Tensor]],
) -> None:
    folder, tensors = copy
    norm = tensors.pop("model.norm.weight")
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(DataError, match=r"the weights lack model\.norm\.weight\."):
        check_names(Weights.of_folder(folder), read_architecture(folder))
    more = {"model.norm.weight": norm, "adapter": norm.clone()}
    save_file(tensors | more, folder / "model.safetensors")
    with pytest.raises(DataError, match="hold unknown adapter"):
        check_names(Weights.of_folder(folder), read_architecture(folder))


def test_another_shape_is_refused_by_name(copy: tuple[Path, dict[str, torch.Tensor]]) -> None:
    folder, tensors = copy
    tensors["model.norm.weight"] = torch.ones(47)
    save_file(tensors, folder / "model.safetensors")
    rule = conversion_rules(read_architecture(folder))["decoder.final_layernorm.weight"]
    with pytest.raises(DataError, match=r"model\.norm\.weight has shape \[47\].*asks for \[48\]"):
        rule.read(Weights.of_folder(folder), Shard(0, 1))


@pytest.mark.parametrize("content", [None, b"", b"\x10\0\0\0\0\0\0\0{broken"])
def test_weights_that_cannot_be_read_are_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(DataError, match=r"model\.safetensors"):
        Weights.of_folder(tmp_path)


@pytest.mark.parametrize("file", ["../other.safetensors", "/etc/passwd", ".."])
def test_an_index_stays_in_its_folder(tmp_path: Path, file: str) -> None:
    index = {"weight_map": {"model.norm.weight": file}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match="must lie in a file beside the index"):
        Weights.of_folder(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", '{"weight_map": 3}'])
def test_a_broken_index_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(DataError, match="not an index of weights"):
        Weights.of_folder(tmp_path)
