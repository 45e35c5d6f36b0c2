"""Who is the champion: `promote`, `rollback`, `approve`, `reject`, and who said so."""

import getpass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alignflow.cli.options import DEFAULT_WORKSPACE, Format, OutputFormat, Workspace
from alignflow.errors import InputError

if TYPE_CHECKING:
    from alignflow.tasks.decisions import Author, Decision
    from alignflow.tasks.tracking import Registry

ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="Name of the registered model.")]
By = Annotated[
    str | None, typer.Option(help="Who decides; nothing checks it. The user's name by itself.")
]
Note = Annotated[str, typer.Option(help="Why.")]
RunName = Annotated[
    str, typer.Argument(metavar="RUN", help="Name of the run, or its flow run's id.")
]
AnswerNote = Annotated[str, typer.Option("--note", help="Why; it is kept with the decision.")]


def promote(
    model: ModelName,
    version: Annotated[str | None, typer.Argument(help="Its number; else the candidate.")] = None,
    note: Note = "",
    by: By = None,
    force: Annotated[
        bool, typer.Option("--force", help="Promote what the gate refuses; needs --note.")
    ] = False,
    workspace: Workspace = DEFAULT_WORKSPACE,
) -> None:
    """Make a version the champion, if it passes the gate beside the present one."""
    from alignflow.tasks.champions import promotion_sentence
    from alignflow.tasks.promotion import promote as promote_version

    author, cache = _author(by, note), workspace.absolute() / "cache"
    registry = _open_registry(workspace)
    decision = promote_version(registry, model, version, author, cache=cache, force=force)
    if decision is None:
        print(f"{model} version {version or '@candidate'} is the champion already.")
    else:
        print(promotion_sentence(model, decision))


def rollback(
    model: ModelName,
    note: Note = "",
    by: By = None,
    workspace: Workspace = DEFAULT_WORKSPACE,
) -> None:
    """Make the previous champion the champion again."""
    from alignflow.tasks.champions import rollback_sentence
    from alignflow.tasks.promotion import roll_back

    decision = roll_back(_open_registry(workspace), model, _author(by, note))
    print(rollback_sentence(model, decision))


def decisions(
    model: ModelName,
    format: OutputFormat = Format.TABLE,
    workspace: Workspace = DEFAULT_WORKSPACE,
) -> None:
    """List every decision on a model, oldest first."""
    from alignflow.tasks.decisions import settle

    found = settle(_open_registry(workspace), model)
    if format is Format.JSON:
        print(f"[{','.join(decision.model_dump_json() for decision in found)}]")
    else:
        _print_table(found)


def approve(
    run: RunName,
    note: AnswerNote,
    by: By = None,
    workspace: Workspace = DEFAULT_WORKSPACE,
) -> None:
    """Promote the model of a run that waits for approval."""
    _answer(run, note, by, workspace, approve=True)


def reject(
    run: RunName,
    note: AnswerNote,
    by: By = None,
    workspace: Workspace = DEFAULT_WORKSPACE,
) -> None:
    """Refuse the model of a run that waits for approval; it stops being the candidate."""
    _answer(run, note, by, workspace, approve=False)


def _answer(run: str, note: str, by: str | None, workspace: Path, *, approve: bool) -> None:
    from alignflow.tasks.approval import answer, find_request, let_go_on
    from alignflow.tasks.champions import promotion_sentence

    author, cache = _author(by, note), workspace.absolute() / "cache"
    registry = _open_registry(workspace)
    request = find_request(registry, run)
    decision = answer(registry, request, author, approve=approve, cache=cache)
    let_go_on(request, author, approve=approve)
    version, done = request.version, "approved" if approve else "rejected"
    if decision is None:
        print(f"{version.name} version {version.version} was {done} before.")
    elif approve:
        print(promotion_sentence(version.name, decision))
    else:
        print(f"{version.name} version {version.version} is rejected.")


def approvals(
    remind_after_h: Annotated[
        float | None,
        typer.Option(
            "--remind-after-h",
            min=0,
            help="Post Prefect's event alignflow.approval.reminder for what waits so many hours.",
        ),
    ] = None,
    workspace: Workspace = DEFAULT_WORKSPACE,
) -> None:
    """List what waits for approval, the oldest first."""
    from alignflow.tasks.approval import open_requests, remind

    registry = _open_registry(workspace)
    if remind_after_h is None:
        found = open_requests(registry)
    else:
        found = remind(registry, timedelta(hours=remind_after_h))
    for request in found:
        until = request.until.isoformat(sep=" ", timespec="minutes")
        print(f"{request.run}  {request.version.uri}  until {until}")


def _author(by: str | None, note: str) -> "Author":
    from alignflow.tasks.decisions import Author

    if by is None:
        try:
            by = getpass.getuser()
        except (KeyError, OSError):
            raise InputError("this machine has no name for you; give one by --by.") from None
    return Author(by, note)


def _open_registry(workspace: Path) -> "Registry":
    """Return the registry that the environment names, or the workspace's own."""
    from alignflow.tasks.tracking import Registry, tracking_uri

    return Registry(tracking_uri(workspace.absolute()))


def _print_table(found: "list[Decision]") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("", "when", "version", "what", "champion", "by", "note")
    for decision in found:
        forced = " (forced)" if decision.forced else ""
        cells = (
            str(decision.number),
            decision.at.isoformat(sep=" ", timespec="seconds"),
            decision.version,
            decision.action + forced,
            decision.after.get("champion", "none"),
            decision.by,
            decision.note,
        )
        table.add_row(*(Text(cell) for cell in cells))
    Console().print(table)
