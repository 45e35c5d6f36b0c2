"""Two processes over gloo compute what one process computes, in every layout."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

pytestmark = pytest.mark.integration

SHAPE = {
    "vocab_size": 97,  # odd: split over two ranks it needs a row of padding
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
LAYOUTS = ("tensor", "pipeline", "data", "sharded")
CASES = [
    *(("tied", case) for case in ("lm", "reward", "lm-lora")),
    *(("untied", case) for case in ("lm", "reward", "reward-lora")),
]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Return the folder of the cases' files and their results, of one and of two processes."""
    models, out = tmp_path_factory.mktemp("models"), tmp_path_factory.mktemp("out")
    torch.manual_seed(0)
    # One key-value head on two ranks: the head is split between them.
    tied = Qwen2Config(**SHAPE, num_key_value_heads=1, tie_word_embeddings=True)
    Qwen2ForCausalLM(tied).save_pretrained(models / "tied")
    untied = Qwen3Config(**SHAPE, num_key_value_heads=2, head_dim=16, tie_word_embeddings=False)
    Qwen3ForCausalLM(untied).save_pretrained(models / "untied")
    results: dict[str, Any] = {}
    for num_processes in (1, 2):
        script = Path(__file__).with_name("megatron_parallel_cases.py")
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command = [*torchrun, f"--nproc-per-node={num_processes}", str(script)]
        done = subprocess.run(
            [*command, str(models), str(out)], capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr[-6000:]
        results |= json.loads((out / "results.json").read_text())
    return out, results


@pytest.mark.parametrize(("model", "case"), CASES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_scores_and_steps_equal_those_of_one_process(
    outcome: tuple[Path, dict[str, Any]], layout: str, model: str, case: str
) -> None:
    one, two = outcome[1][f"one-{model}-{case}"], outcome[1][f"{layout}-{model}-{case}"]
    for expected, found in zip(one["scores"], two["scores"], strict=True):
        assert found == pytest.approx(expected, abs=1e-5)
    for expected, found in zip(one["steps"], two["steps"], strict=True):
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(("model", "case"), CASES)
@pytest.mark.parametrize("layout", ["one", *LAYOUTS])
def test_a_checkpoint_continues_bit_for_bit(
    outcome: tuple[Path, dict[str, Any]], layout: str, model: str, case: str
) -> None:
    assert outcome[1][f"{layout}-{model}-{case}"]["repeats"]


@pytest.mark.parametrize(("model", "case"), CASES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_export_is_that_of_one_process(
    outcome: tuple[Path, dict[str, Any]], layout: str, model: str, case: str
) -> None:
    expected, found = (weights(outcome[0] / f"{at}-{model}-{case}") for at in ("one", layout))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-4, msg=name)


def weights(case: Path) -> dict[str, torch.Tensor]:
    return {
        name: tensor
        for file in sorted((case / "export").rglob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }
