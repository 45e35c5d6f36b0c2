"""What a training process settles before it computes."""

import subprocess
import sys

# In processes that have just begun, as a job's has: what is looked for happens once in each.
_SCRIPT = """
import os
import sys

import torch

from alignflow.training.config import ParallelConfig
from alignflow.training.megatron.setup import initialize

angles = torch.arange(700).float()[:, None] * torch.linspace(1, 0.01, 8)
wrong = 0
for _ in range(60):
    child = os.fork()
    if child == 0:
        initialize(ParallelConfig(), seed=1)
        os._exit(not torch.equal(angles.cos(), angles.cos()))
    wrong += os.waitpid(child, 0)[1] != 0
sys.exit(wrong)
"""


def test_the_first_cosines_of_a_process_are_those_of_later_ones() -> None:
    done = subprocess.run([sys.executable, "-c", _SCRIPT], timeout=240, check=False)
    assert done.returncode == 0
