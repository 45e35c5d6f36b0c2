"""`alignflow gc`: remove what no registered version and no run of late needs."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from alignflow.cli.options import DEFAULT_WORKSPACE, Format, OutputFormat, Workspace

if TYPE_CHECKING:
    from alignflow.artifacts.garbage import Garbage
    from alignflow.tasks.cleaning import JobFolder

_DAY_S = 86_400.0


def gc(
    unused_days: Annotated[
        float,
        typer.Option(
            min=1,
            help="Days for which no run may have wanted what goes; more than your longest run.",
        ),
    ] = 30.0,
    delete: Annotated[
        bool, typer.Option("--delete", help="Remove it; without, it is only listed.")
    ] = False,
    store: Annotated[
        str | None, typer.Option(help="Path or s3:// URL of the store; else the workspace's.")
    ] = None,
    none_registered: Annotated[
        bool,
        typer.Option("--none-registered", help="Go on though no model of the store is registered."),
    ] = False,
    format: OutputFormat = Format.TABLE,
    workspace: Workspace = DEFAULT_WORKSPACE,
) -> None:
    """List what nobody needs any more, in the store and among ended jobs, or remove it."""
    from alignflow.artifacts import ArtifactStore
    from alignflow.tasks.cleaning import clean_jobs, clean_store
    from alignflow.tasks.tracking import Registry, tracking_uri

    workspace = workspace.absolute()
    unused_s = unused_days * _DAY_S
    garbage = clean_store(
        ArtifactStore(store or str(workspace / "artifacts")),
        Registry(tracking_uri(workspace)),
        unused_s=unused_s,
        allow_none_registered=none_registered,
        delete=delete,
    )
    jobs = clean_jobs(workspace, unused_s=unused_s, delete=delete)
    rows = [*_artifact_rows(garbage), *_job_rows(jobs)]
    if format is Format.JSON:
        print(json.dumps({"deleted": delete, "items": rows}, indent=2))
    else:
        _print(rows, delete=delete)


def _artifact_rows(garbage: "Garbage") -> list[dict[str, str | int | float]]:
    unused = {record.manifest.digest: record.unused_s for record in garbage.records}
    return [
        {
            "what": manifest.kind,
            "name": manifest.digest[:12],
            "bytes": manifest.size,
            # An artifact without a key has no record of its last use.
            "unused_days": round(unused.get(manifest.digest, 0.0) / _DAY_S, 1),
        }
        for manifest in garbage.artifacts
    ]


def _job_rows(folders: "list[JobFolder]") -> list[dict[str, str | int | float]]:
    return [
        {
            "what": "job",
            "name": folder.path.name,
            "bytes": folder.size,
            "unused_days": round(folder.unused_s / _DAY_S, 1),
        }
        for folder in folders
    ]


def _print(rows: list[dict[str, str | int | float]], *, delete: bool) -> None:
    if not rows:
        print("nothing is unneeded")
        return
    from rich.console import Console
    from rich.table import Table

    from alignflow.reporting.text import format_bytes

    table = Table("what", "name", "size", "unused for", box=None, pad_edge=False)
    for row in rows:
        size, days = int(row["bytes"]), float(row["unused_days"])
        table.add_row(
            str(row["what"]),
            str(row["name"]),
            format_bytes(size),
            f"{days:.0f} days" if days else "-",
        )
    Console().print(table)
    total = format_bytes(sum(int(row["bytes"]) for row in rows))
    if delete:
        print(f"removed {total}")
    else:
        print(f"{total} would go; alignflow gc --delete removes it")
