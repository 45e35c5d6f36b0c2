"""Two and four processes over gloo compute what one process computes, in every layout."""

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
LAYOUTS = ("tensor", "pipeline", "data", "sharded", "sequence", "context")
LAYOUTS_OF_FOUR = (
    *("tensor-pipeline", "tensor-data", "pipeline-data"),
    *("sequence-pipeline", "sequence-sharded", "pipeline-sharded"),
    *("context-sequence", "context-pipeline", "context-sharded"),
)
Outcome = dict[str, Any]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    # One key-value head on two ranks: the head is split between them.
    tied = Qwen2Config(**SHAPE, num_key_value_heads=1, tie_word_embeddings=True)
    Qwen2ForCausalLM(tied).save_pretrained(folder / "tied")
    untied = Qwen3Config(
        **{**SHAPE, "num_attention_heads": 8},
        num_key_value_heads=4,
        head_dim=16,
        tie_word_embeddings=False,
    )
    Qwen3ForCausalLM(untied).save_pretrained(folder / "untied")
    return folder


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the files of every case."""
    return tmp_path_factory.mktemp("out")


@pytest.fixture(scope="module")
def two(models: Path, out: Path) -> Outcome:
    return run_cases(models, out, num_processes=2)


@pytest.fixture(scope="module")
def one(models: Path, out: Path, two: Outcome) -> Outcome:
    """Of one process, which also loads what two have saved."""
    return run_cases(models, out, num_processes=1)


@pytest.fixture(scope="module")
def four(models: Path, out: Path, one: Outcome) -> Outcome:
    """Of four, which load what one and two have saved."""
    return run_cases(models, out, num_processes=4)


def run_cases(models: Path, out: Path, *, num_processes: int) -> Outcome:
    """Run every case of so many processes and return their results by name."""
    script = Path(__file__).with_name("megatron_parallel_cases.py")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*torchrun, f"--nproc-per-node={num_processes}", str(script)]
    done = subprocess.run(
        [*command, str(models), str(out)], capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-6000:]
    outcome: Outcome = json.loads((out / "results.json").read_text())
    return outcome


@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_processes_compute_what_one_computes(
    one: Outcome, two: Outcome, out: Path, layout: str
) -> None:
    assert_same(one, two, out, layout)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS_OF_FOUR)
def test_four_processes_compute_what_one_computes(
    one: Outcome, four: Outcome, out: Path, layout: str
) -> None:
    assert_same(one, four, out, layout)


@pytest.mark.parametrize("layout", ["one", *LAYOUTS])
def test_a_checkpoint_goes_on_under_another_layout(one: Outcome, two: Outcome, layout: str) -> None:
    assert_moved(one, one | two, layout)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS_OF_FOUR)
def test_a_checkpoint_goes_on_over_four_processes(one: Outcome, four: Outcome, layout: str) -> None:
    assert_moved(one, four, layout)


def assert_same(one: Outcome, several: Outcome, out: Path, layout: str) -> None:
    """Scores, steps and export are those of one process; a checkpoint continues bit for bit."""
    for case, spread in several[layout].items():
        alone = one["one"][case]
        assert_close(alone, spread, scores="scores", steps="steps")
        assert spread["repeats"], case
        expected, found = (weights(out / at / case) for at in ("one", layout))
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-4, msg=name)


def assert_moved(one: Outcome, several: Outcome, layout: str) -> None:
    """What another layout saved gives the scores, and then the steps, of a single process."""
    for case, spread in several[layout].items():
        alone = one["one"][case]
        after_checkpoint = {
            "moved_scores": alone["trained_scores"],
            "moved_steps": alone["steps"][-2:],
        }
        assert_close(after_checkpoint, spread, scores="moved_scores", steps="moved_steps")


def assert_close(expected: Outcome, found: Outcome, *, scores: str, steps: str) -> None:
    for expected_scores, found_scores in zip(expected[scores], found[scores], strict=True):
        assert found_scores == pytest.approx(expected_scores, abs=1e-5)
    for expected_step, found_step in zip(expected[steps], found[steps], strict=True):
        assert found_step == pytest.approx(expected_step, rel=1e-4, abs=1e-5)


def weights(case: Path) -> dict[str, torch.Tensor]:
    return {
        name: tensor
        for file in sorted((case / "export").glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }
