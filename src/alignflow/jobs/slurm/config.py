"""What a recipe says about a Slurm cluster."""

import sys
from typing import Annotated, Self

from pydantic import Field, PositiveInt, model_validator

from alignflow.config import Config

_Word = Annotated[str, Field(pattern=r"^[^\s'\"\\$`;]+$")]
_Line = Annotated[str, Field(pattern=r"^[^\n\r]+$")]


class SlurmConfig(Config):
    """How jobs are submitted to Slurm."""

    partition: _Word | None = None
    account: _Word | None = None
    qos: _Word | None = None
    constraint: _Word | None = None
    processes_per_node: PositiveInt = 1
    """On GPUs: GPUs a node."""
    cpus_per_process: PositiveInt = 1
    memory: _Word | None = None
    """Of each node, as Slurm takes it, such as `64G`; None is the partition's default."""
    requeue: bool = True
    """Let a job that is preempted, loses a node or nears its time limit go on by itself from its
    last checkpoint, as the same job."""
    stop_before_limit_s: PositiveInt = 120
    """How long before its time limit a job is told to save a checkpoint."""
    options: list[_Line] = []
    """Further options of sbatch, such as `--exclude=node17`."""
    export: list[_Word] = ["PATH", "HOME", "USER", "LANG", "LD_LIBRARY_PATH", "PYTHONPATH"]
    """Variables of the environment that jobs get; no others, so that no secret is among them."""
    setup: list[_Line] = []
    """Lines of the shell that run first on the first node, such as `module load cuda`."""
    python: str = sys.executable
    """Interpreter that has alignflow, on the first node."""
    node_command: list[str] = []
    """What stands before the interpreter on each node, such as
    `[apptainer, exec, --nv, /images/alignflow.sif]`."""
    node_python: str | None = None
    """Interpreter on each node, inside of the container; None is `python`."""

    @model_validator(mode="after")
    def _options_are_options(self) -> Self:
        for option in self.options:
            if not option.startswith("-"):
                raise ValueError(f"options: {option!r} is no option; write it as --name=value")
        return self
