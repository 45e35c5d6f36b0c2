"""Loss curves beside those of TRL, which computes them from the same texts by code of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.slow]

PARITY = Path(__file__).parents[2] / "benchmarks" / "parity.py"


@pytest.mark.parametrize("stage", ["sft", "reward_model", "dpo"])
def test_the_loss_of_every_step_is_that_of_trl(stage: str) -> None:
    command = [sys.executable, str(PARITY), "--stage", stage, "--model", "tiny"]
    # At this rate the weights move as far in 20 steps as those of a large model in an epoch.
    done = subprocess.run(
        [*command, "--learning-rate", "1e-3"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    *steps, _ = (line.split() for line in done.stdout.splitlines()[1:])
    assert [int(step[0]) for step in steps] == list(range(1, 21))
    losses = [float(step[1]) for step in steps]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(("stage", "num_lines"), [("ppo", 10), ("rloo", 5)])
def test_advantages_losses_and_gradients_are_those_of_trl(stage: str, num_lines: int) -> None:
    command = [sys.executable, str(PARITY), "--stage", stage]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == num_lines
