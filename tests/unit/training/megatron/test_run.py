import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from alignflow.errors import ConfigError, DataError
from alignflow.training.batch import PackedBatch
from alignflow.training.config import ParallelConfig, SFTConfig
from alignflow.training.errors import DivergedError
from alignflow.training.losses import SummedLoss
from alignflow.training.megatron.model import Head, stored_weights, trunk_parameters
from alignflow.training.megatron.run import Run, build_run
from alignflow.training.sampling import Sampling

ModelFolder = Callable[[str], tuple[Path, PreTrainedModel]]
MakeBatch = Callable[..., PackedBatch]

CONFIG = SFTConfig(
    max_length=128, precision="fp32", learning_rate=2e-3, warmup_fraction=0.5, weight_decay=0.1
)


def start(
    folder: Path, config: SFTConfig = CONFIG, *, head: Head = "lm", num_steps: int = 4
) -> Run:
    return build_run(config, folder, head=head, num_steps=num_steps)


def summed(output: Tensor, batch: PackedBatch) -> SummedLoss:
    return SummedLoss(
        total=-output.sum(),
        units=torch.tensor(output.numel(), dtype=torch.int32),
        metrics={"mean_output": output.detach().sum()},
    )


def squared(scores_R: Tensor, batch: PackedBatch) -> SummedLoss:
    units = torch.tensor(scores_R.numel(), dtype=torch.int32)
    return SummedLoss(total=(scores_R - 1).square().sum(), units=units, metrics={})


@pytest.fixture
def microbatches(make_batch: MakeBatch) -> Sequence[PackedBatch]:
    return [make_batch((12, 5), seed=1), make_batch((21,), seed=2)]


def test_steps_equal_those_of_torch_and_transformers(
    model_folder: ModelFolder, microbatches: Sequence[PackedBatch]
) -> None:
    folder, _ = model_folder("llama3-tied")
    run = start(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8)
    # Two of four steps warm up; the cosine then falls over steps 3 and 4 and what follows them.
    for rate in (1e-3, 2e-3, 1.5e-3):
        losses = []
        for batch in microbatches:
            for row in torch.split(batch.tokens_T, batch.row_starts_R1.diff().tolist()):
                scored = slice(len(row) // 3, len(row) - 1)
                logprobs = model(row[None]).logits[0].log_softmax(-1)
                losses.append(-logprobs[scored].gather(1, row[1:][scored, None]))
        loss = torch.cat(losses).mean()
        adam.zero_grad()
        torch.autograd.backward(loss)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in adam.param_groups:
            group["lr"] = rate
        adam.step()
        found = run.train_step(microbatches, summed)
        assert found == pytest.approx(
            {
                "loss": loss.item(),
                "mean_output": -loss.item(),
                "grad_norm": norm.item(),
                "learning_rate": rate,
            },
            rel=1e-4,
        )


def test_microbatches_add_up_to_the_batch(model_folder: ModelFolder, make_batch: MakeBatch) -> None:
    rows = [make_batch((length,), seed=length) for length in (12, 5, 21)]
    whole = PackedBatch(
        tokens_T=torch.cat([row.tokens_T for row in rows]),
        positions_T=torch.cat([row.positions_T for row in rows]),
        row_tokens_S=torch.arange(38),
        row_starts_R1=torch.tensor([0, 12, 17, 38], dtype=torch.int32),
        score_index_N=torch.cat(
            [row.score_index_N + at for row, at in zip(rows, (0, 12, 17), strict=True)]
        ),
        targets_N=torch.cat([row.targets_N for row in rows]),
        score_row_N=torch.cat([row.score_row_N + n for n, row in enumerate(rows)]),
        row_last_R=torch.tensor([11, 16, 37]),
    )
    folder, _ = model_folder("qwen3")
    apart, together = start(folder), start(folder)
    for _ in range(3):
        expected = together.train_step([whole], summed)
        assert apart.train_step(rows, summed) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("head", ["lm", "reward", "value"])
@pytest.mark.parametrize("is_sharded", [False, True])
def test_a_checkpoint_continues_bit_for_bit(
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
    drawn = torch.rand(3)

    fresh = start(folder, config, head=head)
    assert fresh.load_checkpoint(tmp_path) == {"rows": 7}
    assert [fresh.train_step(microbatches, loss) for _ in range(2)] == expected
    assert torch.equal(torch.rand(3), drawn)


@pytest.mark.parametrize("is_sharded", [False, True])
@pytest.mark.parametrize("family", ["llama3-tied", "qwen2"])
def test_master_weights_keep_what_bf16_rounds_off(
    model_folder: ModelFolder, family: str, is_sharded: bool
) -> None:
    folder, _ = model_folder(family)
    parallel = ParallelConfig(use_distributed_optimizer=is_sharded)
    run = start(folder, CONFIG.replaced(precision="bf16", parallel=parallel))
    parameters = trunk_parameters(run.model.module)
    has_low_bits = False
    for name, stored in stored_weights(run.model.module, folder):
        master: Any = parameters[name].main_param  # type: ignore[attr-defined]
        assert torch.equal(master.view(-1), stored.view(-1)), name
        assert torch.equal(parameters[name], stored.bfloat16()), name
        has_low_bits |= not torch.equal(stored, stored.bfloat16().float())
    assert has_low_bits


@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_what_is_computed_again_gives_the_same_steps(
    model_folder: ModelFolder, microbatches: Sequence[PackedBatch], recompute: str
) -> None:
    folder, _ = model_folder("qwen3")
    kept, again = start(folder), start(folder, CONFIG.replaced(recompute=recompute))
    num_forwards = 0

    def count_forward(*_: object) -> None:
        nonlocal num_forwards
        num_forwards += 1

    layer = again.model.module.decoder.layers[0]
    watched = layer if recompute == "full" else layer.self_attention.core_attention
    watched.register_forward_hook(count_forward)
    for _ in range(3):
        expected = kept.train_step(microbatches, summed)
        assert again.train_step(microbatches, summed) == expected
    assert num_forwards == 2 * 3 * len(microbatches)


def test_half_a_checkpoint_is_refused(model_folder: ModelFolder, tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text('{"schedule"')
    with pytest.raises(DataError, match="not a whole checkpoint"):
        start(model_folder("llama2")[0]).load_checkpoint(tmp_path)


def test_scoring_changes_nothing(
    model_folder: ModelFolder, microbatches: Sequence[PackedBatch]
) -> None:
    run = start(model_folder("llama2")[0])
    before = run.forward(microbatches)
    assert [output.shape for output in before] == [(b.targets_N.numel(),) for b in microbatches]
    again = run.forward(microbatches)
    assert all(torch.equal(a, b) for a, b in zip(before, again, strict=True))
    mean = torch.cat(before).mean().item()
    assert run.train_step(microbatches, summed)["mean_output"] == pytest.approx(mean, rel=1e-5)


def test_an_export_of_an_untrained_model_is_the_model(
    model_folder: ModelFolder, tmp_path: Path, family: str
) -> None:
    folder, _ = model_folder(family)
    (folder / "vocab.json").write_text("{}")
    start(folder).export(tmp_path)
    expected, found = (load_file(f / "model.safetensors") for f in (folder, tmp_path))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "float32"
    assert (tmp_path / "vocab.json").read_text() == "{}"


def test_a_trained_export_scores_in_transformers_as_in_training(
    model_folder: ModelFolder, microbatches: Sequence[PackedBatch], tmp_path: Path
) -> None:
    run = start(model_folder("qwen2-tied")[0])
    run.train_step(microbatches, summed)
    run.export(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    batch = microbatches[1]
    with torch.no_grad():
        logprobs = model(batch.tokens_T[None]).logits[0].log_softmax(-1)
    expected = logprobs[batch.score_index_N, batch.targets_N]
    torch.testing.assert_close(run.forward([batch])[0], expected, rtol=0, atol=1e-5)


def test_a_reward_model_is_loaded_from_its_export(
    model_folder: ModelFolder, microbatches: Sequence[PackedBatch], tmp_path: Path
) -> None:
    folder, model = model_folder("llama2")
    run = start(folder, head="reward")
    run.train_step(microbatches, squared)
    run.export(tmp_path)
    scores = run.forward(microbatches)
    other_seed = CONFIG.replaced(seed=99)
    again = start(tmp_path, other_seed, head="reward").forward(microbatches)
    assert all(torch.equal(a, b) for a, b in zip(scores, again, strict=True))
    # The output layer, which a reward model doesn't use, is kept for whoever loads the folder.
    assert torch.equal(
        load_file(tmp_path / "model.safetensors")["lm_head.weight"], model.lm_head.weight
    )


def test_a_critic_starts_from_the_head_of_a_reward_model(
    model_folder: ModelFolder, make_batch: MakeBatch, tmp_path: Path
) -> None:
    reward = start(model_folder("llama2")[0], head="reward")
    reward.export(tmp_path)
    batch = make_batch((9,))
    last_scored = replace(batch, score_index_N=batch.row_last_R)
    (score_R,) = reward.forward([batch])
    (value_N,) = start(tmp_path, head="value").forward([last_scored])
    assert torch.equal(value_N, score_R)


def test_answers_come_from_the_weights_in_training(
    model_folder: ModelFolder, microbatches: Sequence[PackedBatch]
) -> None:
    run = build_run(
        CONFIG,
        model_folder("llama2")[0],
        head="lm",
        num_steps=4,
        temperature=0.7,
        must_generate=True,
    )
    uniforms_BT = torch.linspace(0.05, 0.95, 12, dtype=torch.float64).view(1, 12)
    sampling = Sampling(temperature=0.7)
    for _ in range(2):
        (answer,) = run.language_model().sample(
            [[7, 8]], uniforms_BT, sampling=sampling, stop_tokens=()
        )
        tokens_T = torch.tensor([7, 8, *answer.tokens])
        batch = PackedBatch(
            tokens_T=tokens_T,
            positions_T=torch.arange(14),
            row_tokens_S=torch.arange(14),
            row_starts_R1=torch.tensor([0, 14], dtype=torch.int32),
            score_index_N=torch.arange(1, 13),
            targets_N=tokens_T[2:],
            score_row_N=torch.zeros(12, dtype=torch.int64),
            row_last_R=torch.tensor([13]),
        )
        (logps_N,) = run.forward([batch])
        torch.testing.assert_close(torch.tensor(answer.logps), logps_N, rtol=0, atol=1e-5)
        run.train_step(microbatches, summed)


@pytest.mark.parametrize(
    ("factor", "says"), [(1e6, "past max_loss"), (float("nan"), "The loss is nan")]
)
def test_a_loss_out_of_bounds_stops_the_run_before_the_update(
    model_folder: ModelFolder, microbatches: Sequence[PackedBatch], factor: float, says: str
) -> None:
    run = start(model_folder("llama2")[0])
    before = run.forward(microbatches)

    def scaled(output: Tensor, batch: PackedBatch) -> SummedLoss:
        loss = summed(output, batch)
        return SummedLoss(loss.total * factor, loss.units, loss.metrics)

    with pytest.raises(DivergedError, match=says):
        run.train_step(microbatches, scaled)
    after = run.forward(microbatches)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_gradient_out_of_bounds_stops_the_run(
    model_folder: ModelFolder, microbatches: Sequence[PackedBatch]
) -> None:
    def steep(output: Tensor, batch: PackedBatch) -> SummedLoss:
        loss = summed(output, batch)
        # A loss of 0 with an infinite slope.
        return SummedLoss((output - output.detach()).abs().sqrt().sum(), loss.units, {})

    with pytest.raises(DivergedError, match="gradient norm is"):
        start(model_folder("llama2")[0]).train_step(microbatches, steep)


def test_a_layout_for_more_processes_than_there_are_is_refused(model_folder: ModelFolder) -> None:
    config = CONFIG.replaced(parallel=ParallelConfig(data_parallel_size=2))
    with pytest.raises(ConfigError, match="needs 2 processes, but the job has 1"):
        start(model_folder("llama2")[0], config)


def test_a_rank_without_microbatches_is_a_mistake(model_folder: ModelFolder) -> None:
    with pytest.raises(ValueError, match="at least one microbatch"):
        start(model_folder("llama2")[0]).train_step([], summed)
