import shlex
from pathlib import Path

import pytest
from pydantic import ValidationError

from alignflow.errors import ConfigError
from alignflow.jobs.run_folder import RunFolder
from alignflow.jobs.slurm.config import SlurmConfig
from alignflow.jobs.slurm.launcher import batch_script
from alignflow.jobs.spec import JobSpec
from alignflow.tasks.config import ClusterConfig

SPEC = JobSpec(
    name="sft-12ab", module="alignflow.training", config={}, nodes=2, processes_per_node=8
)


def options(script: str) -> dict[str, str]:
    lines = [line for line in script.splitlines() if line.startswith("#SBATCH ")]
    words = [shlex.split(line)[1].removeprefix("--") for line in lines]
    return {name: value for name, _, value in (word.partition("=") for word in words)}


def test_script_says_what_the_recipe_says(tmp_path: Path) -> None:
    config = SlurmConfig(
        partition="gpu",
        account="align",
        cpus_per_process=4,
        memory="64G",
        options=["--exclude=node17"],
        setup=["module load cuda"],
        python="/opt/venv/bin/python",
    )
    folder = RunFolder(tmp_path / "a run")
    spec = SPEC.replaced(gpus_per_node=8, time_limit_s=3601)
    script = batch_script(spec, folder, config)
    assert (
        options(script).items()
        >= {
            "job-name": "sft-12ab",
            "comment": str(folder.path),
            "output": str(folder.launcher_log),
            "nodes": "2",
            "ntasks-per-node": "1",
            "cpus-per-task": "32",  # 8 processes of 4 cores
            "gpus-per-node": "8",
            "mem": "64G",
            "partition": "gpu",
            "account": "align",
            "time": "61",  # minutes that hold 3601 s
            "signal": "B:USR1@120",
            "requeue": "",
            "exclude": "node17",
        }.items()
    )
    assert script.startswith("#!/bin/sh\n")
    assert script.endswith(
        "module load cuda\n"
        f"exec /opt/venv/bin/python -m alignflow.jobs.slurm.batch '{folder.path}'\n"
    )


def test_what_is_not_said_is_left_to_slurm(tmp_path: Path) -> None:
    written = options(batch_script(SPEC, RunFolder(tmp_path), SlurmConfig(requeue=False)))
    assert "no-requeue" in written
    assert not written.keys() & {"partition", "account", "qos", "mem", "time", "signal"}
    assert not written.keys() & {"gpus-per-node", "requeue", "constraint"}


@pytest.mark.parametrize(
    "field",
    [
        {"partition": "gpu\n#SBATCH --uid=0"},
        {"account": "a;b"},
        {"setup": ["module load cuda\nrm -rf /"]},
        {"options": ["node17"]},
        {"export": ["A B"]},
    ],
)
def test_nothing_but_options_gets_into_the_script(field: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        SlurmConfig.model_validate(field)


def test_processes_fill_whole_nodes() -> None:
    cluster = ClusterConfig(
        launcher="slurm", slurm=SlurmConfig(processes_per_node=8), device="cuda"
    )
    assert cluster.layout(16) == (2, 8)
    assert cluster.layout(4) == (1, 4)
    with pytest.raises(ConfigError, match="is 8, which doesn't divide the 12 processes"):
        cluster.layout(12)
    assert ClusterConfig().layout(12) == (1, 12)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"launcher": "slurm", "device": "cuda"}, "go together"),
        ({"slurm": {}}, "go together"),
        ({"launcher": "kubernetes", "device": "cuda"}, "go together"),
        ({"launcher": "kubernetes", "device": "cuda", "slurm": {}}, "go together"),
        ({"launcher": "slurm", "slurm": {}}, "device must be cpu or cuda"),
    ],
)
def test_cluster_is_described_whole(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ClusterConfig.model_validate(fields)
