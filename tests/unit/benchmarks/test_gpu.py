"""What is measured on CUDA, and in how many parts, as far as it doesn't take a device."""

import pytest
from gpu import Point, fitting, stage_config, state_bytes

from alignflow.training.config import LoRAConfig, PPOConfig

GIB = 2**30


def point(stage: str, size: str) -> Point:
    return Point(stage, size, length=2048, num_tokens=65536)


def test_state_is_the_hand_worked_number() -> None:
    # 2 bytes of weight, and 4 each of gradient, master weight and two moments.
    assert state_bytes(point("dpo", "1B")) == 18 * 1_235_814_400
    # Actor and critic, reference and reward model.
    assert state_bytes(point("ppo", "1B")) == (2 * 18 + 2 * 2) * 1_235_814_400


@pytest.mark.parametrize(
    ("stage", "size", "gib", "is_whole"),
    [
        ("sft", "3B", 80, True),  # 53.9 GiB
        ("sft", "8B", 80, False),  # 134.6 GiB
        ("sft", "8B", 141, False),
        ("sft", "8B", 180, True),
        ("ppo", "1B", 80, True),  # 46 GiB
        ("ppo", "3B", 80, False),  # 119.7 GiB
        ("ppo", "3B", 141, True),
    ],
)
def test_weights_that_do_not_fit_get_adapters(
    stage: str, size: str, gib: int, is_whole: bool
) -> None:
    found = fitting(point(stage, size), gib * GIB)
    assert found.lora == (None if is_whole else LoRAConfig())
    assert stage_config(found).lora == found.lora


@pytest.mark.parametrize(("stage", "num_items"), [("sft", 32), ("rm", 16), ("dpo", 16)])
def test_a_step_has_the_tokens_that_were_asked_for(stage: str, num_items: int) -> None:
    config = stage_config(point(stage, "tiny"))
    assert config.global_batch_size == num_items
    assert config.microbatch_tokens == 65536


def test_parts_are_no_smaller_than_a_row() -> None:
    assert stage_config(point("sft", "tiny"), num_parts=4).microbatch_tokens == 16384
    assert stage_config(point("sft", "tiny"), num_parts=64).microbatch_tokens == 2048


def test_a_rollout_has_room_for_prompt_and_answer() -> None:
    config = stage_config(point("ppo", "tiny"))
    assert isinstance(config, PPOConfig)
    assert config.rollout_prompts == config.global_batch_size == 32
    assert config.max_prompt_tokens + config.max_new_tokens == 2048
