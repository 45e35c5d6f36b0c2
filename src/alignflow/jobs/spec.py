"""What a job is asked to do, and what it leaves behind when it ends."""

from enum import StrEnum
from typing import Any

from pydantic import Field, PositiveInt

from alignflow.config import Config


class FailureKind(StrEnum):
    """Why a job ended without a result."""

    BAD_CONFIG = "bad_config"
    BAD_DATA = "bad_data"
    DIVERGED = "diverged"
    REWARD_HACKING = "reward_hacking"
    OUT_OF_MEMORY = "out_of_memory"
    DISK_FULL = "disk_full"
    COMMUNICATION = "communication"
    PREEMPTED = "preempted"
    NODE_LOST = "node_lost"
    TIME_LIMIT = "time_limit"
    CANCELLED = "cancelled"
    ERROR = "error"

    @property
    def is_input(self) -> bool:
        """Whether the caller's input is to blame."""
        return self in (FailureKind.BAD_CONFIG, FailureKind.BAD_DATA)

    @property
    def is_retryable(self) -> bool:
        """Whether the same job may succeed when started again from its last checkpoint."""
        return self in (
            FailureKind.COMMUNICATION,
            FailureKind.PREEMPTED,
            FailureKind.NODE_LOST,
            FailureKind.TIME_LIMIT,
        )


class JobStatus(StrEnum):
    """Where a job is in its life."""

    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class JobSpec(Config):
    """Everything a launcher needs to start a job; written to the run folder as `job.json`."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")
    """Deterministic name made of stage and key: the same name is the same job."""
    module: str
    """Python module that torchrun starts; it gets the run folder as its only argument."""
    config: dict[str, Any]
    """Resolved config of the module, JSON types only."""
    nodes: PositiveInt = 1
    processes_per_node: PositiveInt = 1
    gpus_per_node: int = Field(default=0, ge=0)
    """0 runs on the CPU over gloo."""
    env: dict[str, str] = {}
    """Extra environment of the processes; never holds a secret."""
    time_limit_s: PositiveInt | None = None


class JobResult(Config):
    """Content of `result.json`: the job ended well and its output folder is complete."""

    metrics: dict[str, float] = {}
    """Last value of each quantity, named `stage/quantity`."""
    details: dict[str, Any] = {}
    """Facts for the report that are not metrics, such as refused rows by name."""


class JobFailure(Config):
    """Content of `failure.json`: why the job ended without a result."""

    kind: FailureKind
    message: str
    """One sentence for a person."""
    retryable: bool = False
    log_tail: str = ""
    """Last lines of the log of the rank that failed."""
