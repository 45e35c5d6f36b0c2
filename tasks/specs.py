"""What a launcher is asked to start for a stage; neither Prefect nor MLflow is loaded here."""

from pathlib import Path
from typing import Any

from alignflow.jobs.slots import gpu_slots
from alignflow.jobs.spec import JobSpec
from alignflow.tasks.config import ClusterConfig


def job_folder(workspace: Path, stage: str, key: str) -> Path:
    """Return the run folder of a stage's job: the same key is the same job."""
    return workspace / "jobs" / f"{stage.replace('_', '-')}-{key[:12]}"


def job_spec(
    cluster: ClusterConfig,
    name: str,
    module: str,
    *,
    config: dict[str, Any],
    num_processes: int,
    on_cpu: bool,
) -> JobSpec:
    """Return what a launcher is asked to start.

    Raises:
        ConfigError: The processes don't fill the nodes.
    """
    nodes, processes_per_node = cluster.layout(num_processes)
    return JobSpec(
        name=name,
        module=module,
        config=config,
        nodes=nodes,
        processes_per_node=processes_per_node,
        gpus_per_node=0 if on_cpu or not _uses_gpus(cluster.device) else processes_per_node,
        # What a job reads lies in local folders: a slow or absent hub must not matter.
        env={"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
        time_limit_s=cluster.time_limit_s,
    )


def _uses_gpus(device: str) -> bool:
    return device == "cuda" or (device == "auto" and bool(gpu_slots()))
