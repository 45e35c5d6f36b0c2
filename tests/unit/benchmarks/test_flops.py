"""Operations of a step, counted by hand and from known models."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from flops import (
    Work,
    decoding_flops,
    forward_flops,
    num_adapter_weights,
    num_parameters,
    rollout_flops,
    training_flops,
)
from shapes import SHAPES
from transformers import LlamaConfig

from alignflow.training.batch import PackedBatch
from alignflow.training.config import LoRAConfig
from alignflow.training.megatron.architecture import Architecture, Rope, read_architecture

# A block has q 4 x 4, k and v 4 x 2 each, o 4 x 4, and 3 times 4 x 8: 144 weights; two have 288.
SMALL = Architecture(
    family="llama",
    num_layers=2,
    hidden_size=4,
    ffn_hidden_size=8,
    num_heads=2,
    num_kv_heads=1,
    head_dim=2,
    vocab_size=10,
    max_positions=32,
    norm_eps=1e-5,
    rope=Rope("default", 1e4),
    has_tied_embeddings=True,
    has_qkv_bias=False,
    has_qk_norm=False,
    sliding_window=None,
)
WORK = Work(num_tokens=5, row_lengths=(3, 2), num_scored=2)


def test_forward_is_the_hand_worked_number() -> None:
    # Linear layers: 2 * 5 tokens * 288 = 2880. Attention: the rows have 3 + 2 + 1 and 2 + 1 pairs
    # of query and key, 9 in all, of 2 heads with 2 channels, in 2 layers; each pair takes 2 * 2
    # operations a head for its score and as many for the value: 9 * 2 * 2 * 2 * 4 = 288. The LM
    # head: 2 * 2 positions * 4 * 10 = 160.
    assert forward_flops(SMALL, WORK) == 2880 + 288 + 160


def test_training_takes_three_times_the_forward_pass() -> None:
    assert training_flops(SMALL, WORK) == 3 * forward_flops(SMALL, WORK)


def test_only_scored_positions_meet_the_head() -> None:
    unscored = replace(WORK, num_scored=0)
    assert forward_flops(SMALL, WORK) - forward_flops(SMALL, unscored) == 2 * 2 * 4 * 10
    larger = replace(SMALL, vocab_size=1000)
    assert forward_flops(larger, unscored) == forward_flops(SMALL, unscored)


def test_attention_goes_by_the_lengths_of_rows() -> None:
    whole = replace(WORK, row_lengths=(5,))
    # 15 pairs instead of 9.
    assert forward_flops(SMALL, whole) - forward_flops(SMALL, WORK) == (15 - 9) * 32
    # A window of 2 leaves 1 + 2 + 2 + 2 + 2 pairs.
    windowed = replace(SMALL, sliding_window=2)
    assert forward_flops(SMALL, whole) - forward_flops(windowed, whole) == (15 - 9) * 32


def test_operations_add_up_over_microbatches() -> None:
    other = Work(num_tokens=7, row_lengths=(7,), num_scored=1)
    both = Work(num_tokens=12, row_lengths=(3, 2, 7), num_scored=3)
    parts = training_flops(SMALL, WORK) + training_flops(SMALL, other)
    assert training_flops(SMALL, both) == parts


def test_a_shared_prompt_is_computed_once_and_attended_twice() -> None:
    # Rows of 3 and 2 tokens that begin with the same one.
    shared = replace(WORK, num_tokens=4)
    assert forward_flops(SMALL, WORK) - forward_flops(SMALL, shared) == 2 * 288


def test_frozen_weights_have_no_gradient() -> None:
    lora = LoRAConfig(rank=3, targets=("q_proj", "down_proj"))
    # 2 layers * rank 3 * ((4 + 4) + (8 + 4)).
    assert num_adapter_weights(SMALL, lora) == 120
    # Two passes of linear layers and head, three of attention and of the adapters.
    assert training_flops(SMALL, WORK, lora) == 2 * (2880 + 160) + 3 * 288 + 3 * 2 * 5 * 120


def test_decoding_computes_each_token_once() -> None:
    # A prompt of 3 and an answer of 2: 4 tokens are computed, 2 positions give logits, and the
    # last query meets 4 keys.
    expected = forward_flops(SMALL, Work(num_tokens=4, row_lengths=(4,), num_scored=2))
    assert decoding_flops(SMALL, [(3, 2)]) == expected


def test_a_packed_batch_is_its_rows() -> None:
    starts = torch.tensor([0, 3, 5], dtype=torch.int32)
    batch = PackedBatch(
        tokens_T=torch.zeros(4, dtype=torch.int64),  # the rows share one
        positions_T=torch.zeros(4, dtype=torch.int64),
        row_tokens_S=torch.tensor([0, 1, 2, 0, 3]),
        row_starts_R1=starts,
        score_index_N=torch.tensor([1, 3]),
        targets_N=torch.tensor([5, 6]),
        score_row_N=torch.tensor([0, 1]),
        row_last_R=torch.tensor([2, 3]),
    )
    assert Work.of(batch) == replace(WORK, num_tokens=4)


def test_a_rollout_is_answered_read_by_four_and_learnt_from_by_two() -> None:
    # Rows of 3 + 2 and 1 + 3 tokens.
    scored = Work(num_tokens=9, row_lengths=(5, 4), num_scored=5)
    unscored = replace(scored, num_scored=0)
    expected = decoding_flops(SMALL, [(3, 2), (1, 3)])
    expected += 2 * forward_flops(SMALL, scored) + 2 * forward_flops(SMALL, unscored)
    expected += 4 * (training_flops(SMALL, scored) + training_flops(SMALL, unscored))
    assert rollout_flops(SMALL, [(3, 2), (1, 3)], epochs=4) == expected


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("135M", 134_515_008),
        ("360M", 361_821_120),
        ("1B", 1_235_814_400),
        ("3B", 3_212_749_824),
        ("8B", 8_030_261_248),
    ],
)
def test_shapes_have_the_parameters_of_their_models(
    name: str, parameters: int, tmp_path: Path
) -> None:
    LlamaConfig(**SHAPES[name]).save_pretrained(tmp_path)
    assert num_parameters(read_architecture(tmp_path)) == parameters
