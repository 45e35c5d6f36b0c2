"""The pipeline of `load.py`: three stages that do nothing but say that they ran."""

import os
from pathlib import Path

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

STAGES = ("data", "train", "evaluate")


@task(task_run_name="{stage}", cache_policy=NO_CACHE)
def run_trivial_stage(folder: str, number: int, stage: str) -> None:
    """Append a line, whole, to the file that is counted in the end."""
    handle = os.open(Path(folder) / "ran.txt", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(handle, f"{number} {stage}\n".encode())
    finally:
        os.close(handle)


@flow(name="trivial")
def run_trivial_pipeline(folder: str, number: int) -> None:
    """Run three stages, one after the other."""
    for stage in STAGES:
        run_trivial_stage(folder, number, stage)
