"""`alignflow up`, `down`, `status`, `env`: the servers of this machine."""

import contextlib
import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alignflow.cli.options import DEFAULT_WORKSPACE, Format, OutputFormat, Workspace

if TYPE_CHECKING:
    from alignflow.stack.lifecycle import ServiceState, Stack


def _port(what: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(metavar="PORT", help=what, show_default=False)
    return option


def up(
    full: Annotated[
        bool | None,
        typer.Option(
            "--full", help="With PostgreSQL and SeaweedFS (S3) below.", show_default=False
        ),
    ] = None,
    prefect_port: Annotated[int | None, _port("Of Prefect; 4200 at first.")] = None,
    mlflow_port: Annotated[int | None, _port("Of MLflow; 5000 at first.")] = None,
    postgres_port: Annotated[int | None, _port("Of PostgreSQL; 5432 at first.")] = None,
    s3_port: Annotated[
        int | None,
        _port("Of SeaweedFS, which takes the next three and those 10000 above; 8333 at first."),
    ] = None,
    timeout_s: Annotated[
        float, typer.Option("--timeout", min=1, help="Seconds in which each has to answer.")
    ] = 300,
    workspace: Workspace = DEFAULT_WORKSPACE,
) -> None:
    """Start Prefect, MLflow and a worker on this machine, with passwords; what runs already stays.

    Later starts take the options of the first.
    """
    options = {
        "full": full,
        "prefect_port": prefect_port,
        "mlflow_port": mlflow_port,
        "postgres_port": postgres_port,
        "s3_port": s3_port,
    }
    _stack(workspace).up(options, timeout_s=timeout_s)
    place = "" if workspace == DEFAULT_WORKSPACE else f" --workspace {shlex.quote(str(workspace))}"
    print(f'\nAddresses and passwords for a shell: eval "$(alignflow env{place})"')


def down(workspace: Workspace = DEFAULT_WORKSPACE) -> None:
    """Stop the servers and the worker; all data stays."""
    _stack(workspace).down()


def status(format: OutputFormat = Format.TABLE, workspace: Workspace = DEFAULT_WORKSPACE) -> None:
    """Say how each service is; exits with 1 where one isn't healthy."""
    states = _stack(workspace).states()
    if format is Format.JSON:
        print(json.dumps([state._asdict() for state in states], indent=2))
    else:
        _print(states)
    if any(state.state != "healthy" for state in states):
        raise typer.Exit(1)


def env(workspace: Workspace = DEFAULT_WORKSPACE) -> None:
    """Print addresses and passwords of the servers for a shell: eval "$(alignflow env)"."""
    for name, value in _stack(workspace).clients().items():
        print(f"export {name}={shlex.quote(value)}")


def _stack(workspace: Path) -> "Stack":
    from alignflow.stack.lifecycle import Stack

    return Stack(workspace, _say)


def _say(line: str) -> None:
    # Who reads may be gone; what is being started, or stopped again, goes on all the same.
    with contextlib.suppress(BrokenPipeError):
        print(line, flush=True)


def _print(states: "list[ServiceState]") -> None:
    rows = [("service", "state", "address", "pid", "since", "log")]
    rows += [
        (s.service, s.state, s.address, str(s.pid or "-"), s.since or "-", s.log) for s in states
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    for row in rows:
        cells = [f"{cell:{width}}" for cell, width in zip(row, widths, strict=False)]
        print("  ".join([*cells, row[-1]]))
    for state in states:
        if state.reason:
            print(f"{state.service}: {state.reason}")
