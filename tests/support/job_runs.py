"""Starting jobs on tiny models, and reading what they leave."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from alignflow.jobs.run_folder import RunFolder
from alignflow.jobs.spec import JobResult, JobSpec
from alignflow.training.__main__ import train
from alignflow.training.export import export

WORDS = ["red", "blue", "green", "warm", "cold", "tall", "short", "river", "house", "garden"]
WORKERS = Path(__file__).parents[1] / "integration" / "workers"


def make_job(
    path: Path,
    config: dict[str, Any],
    *,
    module: str = "alignflow.training",
    processes: int = 1,
) -> RunFolder:
    """A run folder with its job, about to be run for the first time."""
    folder = RunFolder(path)
    folder.create()
    folder.begin_attempt(
        JobSpec(name=path.name, module=module, config=config, processes_per_node=processes)
    )
    return folder


def change_job(folder: RunFolder, **changes: Any) -> None:
    """Give the job another value of some keys of its config."""
    spec = folder.read_spec()
    folder.begin_attempt(spec.replaced(config={**spec.config, **changes}))


def run_here(folder: RunFolder) -> JobResult:
    """Run the training job in this process."""
    return train(folder, folder.read_spec())


def start(folder: RunFolder) -> subprocess.Popen[bytes]:
    """Start the training job as its launcher does, in a process of its own."""
    command = [sys.executable, "-m", "alignflow.training", str(folder.path)]
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})


def run_in_two_processes(*folders: RunFolder) -> None:
    """Run training jobs one after another, by the same two processes."""
    run_worker("train_folders.py", *(str(folder.path) for folder in folders))


def run_worker(script: str, *arguments: str) -> None:
    """Run a script of `workers/` in two processes that can talk to one another."""
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
        *(str(WORKERS / script), *arguments),
    ]
    with subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}) as process:
        try:
            assert process.wait(timeout=300) == 0
        finally:
            process.terminate()


def wait_for_step(folder: RunFolder, step: int, *, seconds: float = 120) -> None:
    """Return once the job has told of that training step."""
    deadline = time.monotonic() + seconds
    reader = folder.metric_reader()
    while time.monotonic() < deadline:
        if any(row["phase"] == "train" and row["step"] >= step for row in reader.read_new()):
            return
        time.sleep(0.01)
    pytest.fail(f"step {step} wasn't reached in {seconds} s")


def lines(folder: RunFolder, phase: str) -> list[dict[str, Any]]:
    """What the job told of a phase."""
    return [line for line in folder.metric_reader().read_new() if line["phase"] == phase]


def steps(folder: RunFolder) -> list[dict[str, float]]:
    """The metrics of each training step; of one that was done twice, the later ones."""
    stage = folder.read_spec().config["stage"]["stage"]
    by_step = {
        line["step"]: {name: value for name, value in line.items() if name.startswith(f"{stage}/")}
        for line in lines(folder, "train")
    }
    assert list(by_step) == list(range(1, len(by_step) + 1))
    return list(by_step.values())


def exported(folder: RunFolder) -> dict[str, torch.Tensor]:
    """The weights of the model that the job made, its head included."""
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(folder.output.glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


def assert_same_end(folder: RunFolder, other: RunFolder) -> None:
    """Both jobs have gone through the same steps to the same weights, bit for bit."""
    assert steps(folder) == steps(other)
    weights, expected = exported(folder), exported(other)
    assert weights.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(weights[name], tensor), name


def export_checkpoint(folder: RunFolder, step: int, path: Path) -> tuple[RunFolder, JobResult]:
    """Make a model of the checkpoint after that step."""
    config = {"run_folder": str(folder.path), "checkpoint": f"step-{step:08d}"}
    target = make_job(path, config, module="alignflow.training.export")
    return target, export(target, target.read_spec())
