"""Adapters against PEFT's formula on the model of transformers, and against PEFT where it is."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.checkpoint.filesystem import FileSystemReader
from transformers import AutoModelForCausalLM, PreTrainedModel

from alignflow.training.batch import PackedBatch
from alignflow.training.config import DPOConfig, LoRAConfig, ParallelConfig, SFTConfig
from alignflow.training.losses import SummedLoss
from alignflow.training.megatron.architecture import read_architecture
from alignflow.training.megatron.convert import Shard, conversion_rules
from alignflow.training.megatron.lora import (
    AdaptedLinear,
    AdapterLayout,
    adapted_linears,
    adapters_off,
)
from alignflow.training.megatron.model import Head
from alignflow.training.megatron.run import Run, build_run

ModelFolder = Callable[[str], tuple[Path, PreTrainedModel]]
MakeBatch = Callable[..., PackedBatch]

LORA = LoRAConfig(rank=3, alpha=7.5)
CONFIG = SFTConfig(
    max_length=128,
    precision="fp32",
    learning_rate=2e-3,
    warmup_fraction=0,
    weight_decay=0.1,
    lora=LORA,
)
SOME = LoRAConfig(rank=2, alpha=4, targets=("v_proj", "q_proj", "up_proj", "o_proj"))


def start(folder: Path, config: SFTConfig = CONFIG, *, head: Head = "lm") -> Run:
    return build_run(config, folder, head=head, num_steps=4)


def summed(output: Tensor, batch: PackedBatch) -> SummedLoss:
    units = torch.tensor(output.numel(), dtype=torch.int32)
    return SummedLoss(total=-output.sum(), units=units, metrics={})


def squared(scores_R: Tensor, batch: PackedBatch) -> SummedLoss:
    units = torch.tensor(scores_R.numel(), dtype=torch.int32)
    return SummedLoss(total=(scores_R - 1).square().sum(), units=units, metrics={})


def adapters_of(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


class NaiveLoRA(nn.Module):
    """x to W x + alpha / r B A x, word for word."""

    def __init__(self, base: nn.Module, a: Tensor, b: Tensor, config: LoRAConfig) -> None:
        super().__init__()
        self.base, self.a, self.b = base, nn.Parameter(a), nn.Parameter(b)
        self.factor = config.alpha / config.rank

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.base(x) + self.factor * ((x @ self.a.T) @ self.b.T)
        return output


def naive_twin(folder: Path, tensors: dict[str, Tensor], config: LoRAConfig) -> PreTrainedModel:
    """Return the model of transformers with PEFT's adapters on it."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval().requires_grad_(False)
    for name in tensors:
        if name.endswith(".lora_A.weight"):
            module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            parent, _, attribute = module.rpartition(".")
            b = tensors[name.replace("lora_A", "lora_B")]
            base = model.get_submodule(module)
            setattr(
                model.get_submodule(parent), attribute, NaiveLoRA(base, tensors[name], b, config)
            )
    return model


def logps(model: PreTrainedModel, batch: PackedBatch) -> Tensor:
    rows = torch.split(batch.tokens_T, batch.row_starts_R1.diff().tolist())
    logits = torch.cat([model(row[None]).logits[0] for row in rows])
    return logits.log_softmax(-1)[batch.score_index_N, batch.targets_N]


@pytest.fixture
def microbatches(make_batch: MakeBatch) -> Sequence[PackedBatch]:
    return [make_batch((12, 5), seed=1), make_batch((21,), seed=2)]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_new_adapters_change_nothing(
    model_folder: ModelFolder, microbatches: Sequence[PackedBatch], precision: str
) -> None:
    folder, _ = model_folder("qwen3")
    plain = start(folder, CONFIG.replaced(lora=None, precision=precision)).forward(microbatches)
    adapted = start(folder, CONFIG.replaced(precision=precision)).forward(microbatches)
    assert all(torch.equal(a, b) for a, b in zip(plain, adapted, strict=True))


def test_a_is_drawn_as_peft_draws_it(model_folder: ModelFolder) -> None:
    folder, _ = model_folder("llama2")
    rules = conversion_rules(read_architecture(folder))
    layout = AdapterLayout.of(
        rules["decoder.layers.0.mlp.linear_fc2.weight"], LORA.replaced(rank=64)
    )
    whole = layout.initial_a(Shard(0, 1), seed=1)
    # Kaiming's bound with a slope of sqrt(5) is sqrt(6 / (1 + 5) / inputs), of 80 inputs.
    assert whole.shape == (64, 80)
    assert whole.abs().max() == pytest.approx(math.sqrt(1 / 80), rel=1e-3)
    assert whole.std() == pytest.approx(math.sqrt(1 / 80 / 3), rel=0.03)
    halves = [layout.initial_a(Shard(rank, 2), seed=1) for rank in range(2)]
    assert torch.equal(torch.cat(halves, dim=1), whole)
    assert not torch.equal(layout.initial_a(Shard(0, 1), seed=2), whole)


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_rows_of_all_ranks_make_the_projections_again(
    model_folder: ModelFolder, family: str, size: int
) -> None:
    rules = conversion_rules(read_architecture(model_folder(family)[0]))
    for linear in ("self_attention.linear_qkv", "mlp.linear_fc1"):
        layout = AdapterLayout.of(rules[f"decoder.layers.1.{linear}.weight"], LORA)
        # Every row of B says which projection it thinks it is part of.
        owners = [layout.row_owners(Shard(rank, size)) for rank in range(size)]
        parts_b = [owner.int().argmax(1, keepdim=True).expand(-1, 3) for owner in owners]
        assert all(bool((owner.sum(1) == 1).all()) for owner in owners)
        tensors = layout.unfused([torch.zeros(3 * len(layout.projections), 48)] * size, parts_b)
        for number, name in enumerate(layout.projections):
            b_OR = tensors[f"base_model.model.{name}.lora_B.weight"]
            assert b_OR.size(0) == layout.rule.shapes[f"{name}.weight"][0]
            assert bool((b_OR == number).all())


@pytest.mark.parametrize("lora", [LORA, SOME], ids=["all", "some"])
@pytest.mark.parametrize("family", ["qwen2-tied", "qwen3", "llama2"])
def test_steps_equal_those_of_the_formula_on_the_model_of_transformers(
    model_folder: ModelFolder,
    microbatches: Sequence[PackedBatch],
    tmp_path: Path,
    family: str,
    lora: LoRAConfig,
) -> None:
    folder, _ = model_folder(family)
    run = start(folder, CONFIG.replaced(lora=lora))
    run.export(tmp_path / "before")
    twin = naive_twin(folder, adapters_of(tmp_path / "before"), lora)
    trained = [parameter for parameter in twin.parameters() if parameter.requires_grad]
    adam = torch.optim.AdamW(trained, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    for _ in range(3):
        loss = -torch.cat([logps(twin, batch) for batch in microbatches]).mean()
        adam.zero_grad()
        torch.autograd.backward(loss)
        norm = torch.nn.utils.clip_grad_norm_(trained, 1.0)
        found = run.train_step(microbatches, summed)
        assert found["loss"] == pytest.approx(loss.item(), rel=1e-5)
        assert found["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)
        for group in adam.param_groups:
            group["lr"] = found["learning_rate"]
        adam.step()
    with torch.no_grad():
        for output, batch in zip(run.forward(microbatches), microbatches, strict=True):
            torch.testing.assert_close(output, logps(twin, batch), rtol=0, atol=1e-4)
    run.export(tmp_path / "after")
    twins = {name: p for name, p in twin.named_parameters() if p.requires_grad}
    after = adapters_of(tmp_path / "after")
    assert len(after) == len(twins) == 2 * 2 * len(lora.targets)
    for name, tensor in after.items():
        twin_name = name.removeprefix("base_model.model.").removesuffix(".weight")
        expected = twins[twin_name.replace("lora_A", "a").replace("lora_B", "b")]
        torch.testing.assert_close(tensor, expected.detach(), rtol=0, atol=2e-4, msg=name)
        assert tensor.any(), name


@pytest.mark.parametrize("head", ["lm", "reward"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_only_adapters_and_a_reward_head_are_trained(
    model_folder: ModelFolder, microbatches: Sequence[PackedBatch], head: Head, precision: str
) -> None:
    folder, _ = model_folder("qwen2")
    run = start(folder, CONFIG.replaced(precision=precision), head=head)
    before = {name: p.detach().clone() for name, p in run.model.module.named_parameters()}
    for _ in range(2):
        run.train_step(microbatches, squared if head == "reward" else summed)
    changed = {
        name
        for name, parameter in run.model.module.named_parameters()
        if not torch.equal(parameter, before[name])
    }
    heads = {"output_layer.weight"} if head == "reward" else set()
    trained = {name for name in before if ".adapter." in name} | heads
    assert changed == trained
    # Neither gradients nor moments are held of anything else.
    num_trained = sum(before[name].numel() for name in trained)
    assert sum(p.numel() for buffer in run.model.buffers for p in buffer.params) == num_trained
    groups = run.optimizer.param_groups
    assert sum(p.numel() for group in groups for p in group["params"]) == num_trained


@pytest.mark.parametrize("family", ["qwen2-tied", "qwen3"])
def test_the_export_is_the_model_with_its_adapters_merged(
    model_folder: ModelFolder, microbatches: Sequence[PackedBatch], tmp_path: Path, family: str
) -> None:
    folder, _ = model_folder(family)
    run = start(folder)
    for _ in range(3):
        run.train_step(microbatches, summed)
    run.export(tmp_path)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path)
    twin = naive_twin(folder, adapters_of(tmp_path), LORA)
    parent = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for output, batch in zip(run.forward(microbatches), microbatches, strict=True):
            torch.testing.assert_close(logps(merged, batch), output, rtol=0, atol=1e-5)
            torch.testing.assert_close(logps(twin, batch), output, rtol=0, atol=1e-5)
            assert (logps(parent, batch) - output).abs().max() > 1e-2


# PEFT asks transformers by a name that this deprecates.
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("lora", [LORA, SOME], ids=["all", "some"])
def test_peft_loads_the_adapters_and_computes_the_same(
    model_folder: ModelFolder,
    microbatches: Sequence[PackedBatch],
    tmp_path: Path,
    lora: LoRAConfig,
) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed (development packages)")
    folder, _ = model_folder("llama3-tied")
    run = start(folder, CONFIG.replaced(lora=lora))
    for _ in range(3):
        run.train_step(microbatches, summed)
    run.export(tmp_path)
    parent = AutoModelForCausalLM.from_pretrained(folder)
    adapted = peft.PeftModel.from_pretrained(parent, tmp_path / "adapter").eval()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        for output, batch in zip(run.forward(microbatches), microbatches, strict=True):
            torch.testing.assert_close(logps(adapted, batch), output, rtol=0, atol=1e-5)
            torch.testing.assert_close(logps(merged, batch), output, rtol=0, atol=1e-5)
    # What PEFT loaded and writes again is the file that it was given.
    adapted.save_pretrained(tmp_path / "again")
    again = load_file(tmp_path / "again" / "adapter_model.safetensors")
    expected = adapters_of(tmp_path)
    assert again.keys() == expected.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in expected.items())
    config = json.loads((tmp_path / "again" / "adapter_config.json").read_text())
    assert config["lora_alpha"] == lora.alpha
    assert set(config["target_modules"]) == set(lora.targets)


def test_without_its_adapters_the_model_is_the_reference(
    model_folder: ModelFolder, microbatches: Sequence[PackedBatch]
) -> None:
    run = start(model_folder("llama2")[0])
    before = run.forward(microbatches)
    for _ in range(2):
        run.train_step(microbatches, summed)
    trained = run.forward(microbatches)
    with adapters_off(run.model):
        reference = run.forward(microbatches)
        with pytest.raises(KeyError), adapters_off(run.model):
            raise KeyError
        nested = run.forward(microbatches)
    again = run.forward(microbatches)
    for start_N, off_N, nested_N, on_N, again_N in zip(
        before, reference, nested, trained, again, strict=True
    ):
        assert torch.equal(start_N, off_N)
        assert torch.equal(start_N, nested_N)
        assert torch.equal(on_N, again_N)
        assert not torch.equal(on_N, off_N)


def test_a_model_without_adapters_is_no_reference_of_its_own(model_folder: ModelFolder) -> None:
    run = start(model_folder("llama2")[0], CONFIG.replaced(lora=None))
    with pytest.raises(ValueError, match="no adapters"), adapters_off(run.model):
        pass


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("head", ["lm", "reward"])
@pytest.mark.parametrize("is_sharded", [False, True])
def test_a_checkpoint_continues_bit_for_bit_and_holds_no_frozen_weights(
    model_folder: ModelFolder,
    microbatches: Sequence[PackedBatch],
    tmp_path: Path,
    precision: str,
    head: Head,
    is_sharded: bool,
) -> None:
    folder, _ = model_folder("qwen2")
    parallel = ParallelConfig(use_distributed_optimizer=is_sharded)
    config = CONFIG.replaced(precision=precision, parallel=parallel)
    loss = squared if head == "reward" else summed
    run = start(folder, config, head=head)
    run.train_step(microbatches, loss)
    run.save_checkpoint(tmp_path, {"rows": 7})
    expected = [run.train_step(microbatches, loss) for _ in range(2)]
    fresh = start(folder, config, head=head)
    assert fresh.load_checkpoint(tmp_path) == {"rows": 7}
    assert [fresh.train_step(microbatches, loss) for _ in range(2)] == expected
    kept = FileSystemReader(tmp_path).read_metadata().state_dict_metadata
    others = {name for name in kept if ".adapter." not in name and not name.startswith("random.")}
    assert all(name.endswith("output_layer.weight") for name in others)
    assert bool(others) == (head == "reward")


def test_targets_are_named_once() -> None:
    with pytest.raises(ValueError, match="names a layer twice"):
        LoRAConfig(targets=("q_proj", "q_proj"))
    with pytest.raises(ValueError, match="at least 1 item"):
        LoRAConfig(targets=())


def test_layers_that_are_no_target_stay_as_they_are(model_folder: ModelFolder) -> None:
    lora = LoRAConfig(targets=("down_proj",))
    run = start(model_folder("llama2")[0], CONFIG.replaced(lora=lora))
    assert list(adapted_linears(run.model.module)) == [
        f"decoder.layers.{layer}.mlp.linear_fc2.weight" for layer in range(2)
    ]
    layer = run.model.module.decoder.layers[0]
    assert isinstance(layer.mlp.linear_fc2, AdaptedLinear)
    assert not isinstance(layer.mlp.linear_fc1, AdaptedLinear)


def test_every_stage_takes_adapters() -> None:
    config = DPOConfig.model_validate({"lora": {"rank": 4, "targets": ["q_proj"]}})
    assert config.lora == LoRAConfig(rank=4, targets=("q_proj",))
    assert DPOConfig().lora is None
