"""`alignflow jobs`: the jobs of a workspace, from any machine that sees it."""

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alignflow.cli.options import (
    DEFAULT_WORKSPACE,
    Format,
    OutputFormat,
    Overrides,
    RecipePath,
    Workspace,
)
from alignflow.errors import InputError

if TYPE_CHECKING:
    from alignflow.jobs.base import Job
    from alignflow.jobs.run_folder import RunFolder

app = typer.Typer(help="Look at jobs, and stop them.", no_args_is_help=True)

_POLL_S = 0.5
_LIVE = ("pending", "running")

Name = Annotated[str, typer.Argument(metavar="JOB", help="Name of a job, or the start of one.")]


@app.command()
def ls(
    all: Annotated[bool, typer.Option("--all", help="Also those that have ended.")] = False,
    format: OutputFormat = Format.TABLE,
    workspace: Workspace = DEFAULT_WORKSPACE,
) -> None:
    """List jobs that wait or run."""
    from alignflow.jobs.finding import run_folders

    rows = [_row(folder, _job(folder)) for folder in run_folders(workspace)]
    rows = [row for row in rows if all or row["status"] in _LIVE]
    if format is Format.JSON:
        print(json.dumps(rows, indent=2))
        return
    if not rows:
        print("no job waits or runs" if not all else "there are no jobs")
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(*(name for name in rows[0]), box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console().print(table)


@app.command()
def logs(
    name: Name,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the job ends.")
    ] = False,
    rank: Annotated[
        int | None,
        typer.Option(min=0, help="One rank's log; without, the launcher's and rank 0's."),
    ] = None,
    workspace: Workspace = DEFAULT_WORKSPACE,
) -> None:
    """Print what a job has written, each line with the rank that wrote it."""
    from alignflow.jobs.finding import run_folder

    folder = run_folder(workspace, name)
    files = {"launcher": folder.launcher_log, "rank 0": folder.rank_log(0)}
    if rank is not None:
        files = {f"rank {rank}": folder.rank_log(rank)}
        if not follow and not folder.rank_log(rank).exists():
            raise InputError(f"{folder.path.name} has no log of rank {rank}.")
    logs_of = [_Lines(label, path) for label, path in files.items()]
    while True:
        # Asked before reading, so that the last lines are read after the end.
        is_live = follow and _job(folder).status() in _LIVE
        for reader in logs_of:
            reader.print_new()
        if not is_live:
            return
        time.sleep(_POLL_S)


@app.command()
def cancel(
    name: Name,
    grace_s: Annotated[
        float, typer.Option(min=0, help="Seconds in which the job may save a checkpoint.")
    ] = 10.0,
    workspace: Workspace = DEFAULT_WORKSPACE,
) -> None:
    """Stop a job; a run that waits for it ends as cancelled."""
    from alignflow.jobs.finding import run_folder

    folder = run_folder(workspace, name)
    job = _job(folder)
    if job.status() not in _LIVE:
        print(f"{folder.path.name} has ended: {job.status()}")
        return
    job.cancel(grace_s)
    print(f"{folder.path.name}: {job.status()}")


@app.command()
def render(
    recipe: RecipePath,
    stage: Annotated[str, typer.Option(help="Stage whose job to print, such as sft.")],
    overrides: Overrides = None,
) -> None:
    """Print what the cluster is given for a stage: the manifest, or the batch script."""
    from alignflow.config import load_config
    from alignflow.flows.config import Recipe
    from alignflow.flows.rendering import render_stage

    print(render_stage(load_config(Recipe, recipe, overrides=overrides or []), stage), end="")


def _job(folder: "RunFolder") -> "Job":
    from alignflow.jobs.finding import find_job

    job = find_job(folder)
    assert job is not None  # the folder was found by its handle
    return job


def _row(folder: "RunFolder", job: "Job") -> dict[str, str | int]:
    status = job.status()
    failure = job.failure()
    beat = folder.last_beat()
    return {
        "job": folder.path.name,
        "status": str(status),
        "attempt": job.attempt,
        "id": job.id,
        "heard": ""
        if beat is None
        else datetime.fromtimestamp(beat, UTC).isoformat(" ", "seconds"),
        "note": job.note() or (failure.message if failure else ""),
    }


class _Lines:
    """Prints the lines that have come into a log."""

    def __init__(self, label: str, path: Path) -> None:
        self._label = label
        self._path = path
        self._offset = 0

    def print_new(self) -> None:
        """Print the lines that are whole and have come since the last call."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.decode(errors="replace").splitlines():
            print(f"{self._label} | {line}", flush=True)
