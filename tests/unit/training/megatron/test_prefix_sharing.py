"""Pairs whose prompt is computed once give what whole rows give, forward and backward."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from alignflow.training.chat import TokenizedChat
from alignflow.training.config import ParallelConfig
from alignflow.training.megatron.architecture import read_architecture
from alignflow.training.megatron.model import Head, PackedModel, build_model, load_weights
from alignflow.training.packing import pack
from alignflow.training.rows import RowWriter, TokenRows

ModelFolder = Callable[[str], tuple[Path, PreTrainedModel]]

# Tokens of the prompt and of each answer; the second pair's answers begin alike as well.
PAIRS = [(9, 5, 7, 0), (3, 4, 4, 2), (14, 1, 6, 0)]


@pytest.fixture
def pairs(tmp_path: Path) -> TokenRows:
    generator = np.random.default_rng(0)
    with RowWriter(tmp_path / "rows", "digest") as writer:
        for prompt, chosen, rejected, alike in PAIRS:
            begin = generator.integers(1, 48, prompt + alike, dtype=np.int32)
            # The ranges differ, so that the answers differ from where they are meant to.
            ends = (
                generator.integers(low, low + 24, length, dtype=np.int32)
                for low, length in ((48, chosen), (72, rejected))
            )
            answers = [np.concatenate([begin, end]) for end in ends]
            writer.append(
                [
                    TokenizedChat(tokens_T, np.arange(len(tokens_T)) >= prompt)
                    for tokens_T in answers
                ],
                num_truncated=0,
            )
    rows = TokenRows.open(tmp_path / "rows", digest="digest", rows_per_item=2)
    assert rows is not None
    return rows


def built(folder: Path, head: Head, device: torch.device) -> PackedModel:
    model = build_model(
        read_architecture(folder),
        head=head,
        precision="fp32",
        parallel=ParallelConfig(),
        device=device,
    )
    load_weights(model, folder, seed=3)
    model.eval()
    return model


def values_and_gradients(model: PackedModel, rows: TokenRows) -> tuple[Tensor, list[Tensor]]:
    """Return the model's output and the gradients of a weighted sum of it."""
    model.zero_grad()
    output = model(pack(rows, np.arange(len(rows))))
    weights = torch.linspace(-1, 1, len(output))
    (output * weights).sum().backward()
    return output.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("head", ["lm", "reward"])
def test_a_row_that_fills_a_batch_up_changes_nothing(
    model_folder: ModelFolder, pairs: TokenRows, device: torch.device, head: Head
) -> None:
    model, batch = built(model_folder("qwen3")[0], head, device), pack(pairs, np.arange(3))
    filled = batch.filled_up(8)
    assert (batch.num_tokens, filled.num_tokens) == (55, 56)
    assert filled.filled_up(8) is filled
    outputs, gradients = [], []
    for each in (batch, filled):
        model.zero_grad()
        output = model(each)
        (output * torch.linspace(-1, 1, len(output))).sum().backward()
        outputs.append(output.detach())
        gradients.append([p.grad.clone() for p in model.parameters()])
    torch.testing.assert_close(outputs[1], outputs[0])
    torch.testing.assert_close(gradients[1], gradients[0])


def test_what_is_shared_is_written_down(pairs: TokenRows) -> None:
    assert pairs.shared_I.tolist() == [9, 5, 14]
    assert pairs.packed_lengths.tolist() == [9 + 5 + 7, 5 + 4 + 4, 14 + 1 + 6]


@pytest.mark.parametrize("head", ["lm", "reward"])
@pytest.mark.parametrize("name", ["llama3-tied", "mistral-window", "qwen3"])
def test_shared_prompts_change_neither_values_nor_gradients(
    model_folder: ModelFolder, pairs: TokenRows, device: torch.device, name: str, head: Head
) -> None:
    model = built(model_folder(name)[0], head, device)
    shared, shared_gradients = values_and_gradients(model, pairs)
    plain, plain_gradients = values_and_gradients(model, pairs.unshared())
    torch.testing.assert_close(shared, plain, rtol=0, atol=1e-5)
    assert len(shared_gradients) == len(plain_gradients) > 10
    for found, expected in zip(shared_gradients, plain_gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
