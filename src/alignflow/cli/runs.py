"""`alignflow run`, `report` and `lineage`: run a recipe and look at what came of it."""

import gc
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alignflow.cli.options import DEFAULT_WORKSPACE, Overrides, RecipePath, Workspace
from alignflow.errors import InputError, SafetyGateError

if TYPE_CHECKING:
    from prefect import Flow
    from rich.console import Console

    from alignflow.flows.config import Recipe
    from alignflow.tasks.comparison import ComparisonOutcome
    from alignflow.tasks.report import Outcome

_COMPARISON = "comparison.json"


def run(
    recipe: RecipePath,
    overrides: Overrides = None,
    start: Annotated[
        str | None,
        typer.Option("--from", metavar="STAGE", help="Compute this stage and all after it anew."),
    ] = None,
    force: Annotated[
        list[str] | None, typer.Option(metavar="STAGE", help="Compute this stage anew.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")] = False,
) -> None:
    """Run a recipe; stages whose result is in the store are reused."""
    # What is imported stays. Looking for garbage among it while it is loaded takes most of a
    # second, and half a second once more as the interpreter ends.
    gc.disable()
    try:
        _run(recipe, overrides or [], start=start, force=force or [], json=json)
    finally:
        gc.enable()


def _run(
    recipe: Path, overrides: list[str], *, start: str | None, force: list[str], json: bool
) -> None:
    """Import, check and run; garbage is looked for again once all is imported."""
    from rich.console import Console

    from alignflow.config import load_config
    from alignflow.flows.config import Recipe
    from alignflow.flows.graph import stage_graph, stages_to_compute
    from alignflow.tasks.preflight import check_inputs
    from alignflow.terminal import make_display

    config = load_config(Recipe, recipe, overrides=overrides)
    stages_to_compute(stage_graph(config), force, start)
    check_inputs(config)
    console = Console()
    _quieten()
    try:
        with make_display(json, console) as display:
            display.started("start", "Prefect and MLflow")
            from alignflow.tasks.prefect_server import start_prefect

            server = start_prefect()
            # Takes as long to import as the server to start: both go on at once.
            pipeline = _pipeline(config)
            from alignflow.tasks.heartbeat import without_prefects_heartbeat

            gc.freeze()
            gc.enable()
            if server is not None:
                server.use()
            with without_prefects_heartbeat():
                outcome = pipeline(config, force=force, start=start)
    except SafetyGateError as refusal:
        _show(refusal.outcome, console, json)
        raise
    _show(outcome, console, json)


def _pipeline(config: "Recipe") -> "Flow[..., Outcome] | Flow[..., ComparisonOutcome]":
    """Import the flow that the recipe asks for, and only that: a flow takes long to declare."""
    if config.compare is None:
        from alignflow.flows.alignment import align

        return align
    from alignflow.flows.comparison import compare

    return compare


def _quieten() -> None:
    """Keep Prefect's log lines off the terminal, where the stage table is; its pages have them."""
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("DO_NOT_TRACK", "1")


def _show(outcome: "Outcome | ComparisonOutcome", console: "Console", json: bool) -> None:
    if json:
        print(outcome.model_dump_json(indent=2))
        return
    from alignflow.tasks.comparison import ComparisonOutcome
    from alignflow.terminal import print_comparison, print_summary

    if isinstance(outcome, ComparisonOutcome):
        places = {"report": str(outcome.report), **_servers(outcome)}
        print_comparison(console, outcome.comparison, places)
        return
    print_summary(
        console,
        passed=outcome.passed,
        sentence=outcome.sentence,
        reasons=outcome.reasons,
        scores=outcome.scores,
        places=_places(outcome),
    )


def _places(outcome: "Outcome") -> dict[str, str]:
    """Return where everything lies, and how to open what needs a server first."""
    return {
        "model": outcome.model_version or "not registered",
        "report": str(outcome.report),
        "export": outcome.export,
        **_servers(outcome),
    }


def _servers(outcome: "Outcome | ComparisonOutcome") -> dict[str, str]:
    flow_run = f"runs/flow-run/{outcome.flow_run_id}"
    return {
        "Prefect": outcome.prefect_url
        or f"prefect server start, then http://127.0.0.1:4200/{flow_run}",
        "MLflow": outcome.mlflow_url
        or f"mlflow server --backend-store-uri {outcome.mlflow_uri}, then http://127.0.0.1:5000",
    }


def report(
    run: Annotated[str, typer.Argument(help="Name of a run, or latest.")] = "latest",
    workspace: Workspace = DEFAULT_WORKSPACE,
) -> None:
    """Render a run's report page again and print where it lies."""
    from alignflow.reporting.comparison import Comparison
    from alignflow.reporting.model import ReportData
    from alignflow.reporting.page import render_comparison, render_page

    source = _report_data(workspace, run)
    if source.name == _COMPARISON:
        html = render_comparison(Comparison.model_validate_json(source.read_bytes()))
    else:
        html = render_page(ReportData.model_validate_json(source.read_bytes()))
    page = source.with_suffix(".html")
    page.write_text(html, encoding="utf-8")
    print(page)


def _report_data(workspace: Path, run: str) -> Path:
    """Return the file from which a run's page is rendered."""
    runs = sorted(
        (
            path
            for name in ("report.json", _COMPARISON)
            for path in workspace.glob(f"runs/*/{name}")
        ),
        key=lambda path: path.stat().st_mtime,
    )
    if not runs:
        raise InputError(f"{workspace.absolute()} holds no finished run; run a recipe first.")
    if run == "latest":
        return runs[-1]
    found = [path for path in runs if path.parent.name == run]
    if not found:
        latest = ", ".join(path.parent.name for path in runs[-3:])
        raise InputError(f"there is no finished run {run}; the latest are {latest}.")
    return found[0]


def lineage(
    ref: Annotated[
        str, typer.Argument(help="models:/NAME@ALIAS, models:/NAME/VERSION, or a digest.")
    ],
    format: Annotated[
        str, typer.Option("--format", help="tree, json or mermaid.", metavar="FORMAT")
    ] = "tree",
    store: Annotated[str | None, typer.Option(help="URL of the artifact store.")] = None,
    workspace: Workspace = DEFAULT_WORKSPACE,
) -> None:
    """Walk from a model version or artifact back to every data set."""
    from alignflow.artifacts import ArtifactStore
    from alignflow.lineage import find_artifact, to_json, to_mermaid, to_tree, trace

    renderers = {"tree": to_tree, "json": to_json, "mermaid": to_mermaid}
    if format not in renderers:
        raise InputError(f"--format {format}: formats are tree, json and mermaid.")
    tags = {"alignflow.digest": ref}
    if ref.startswith("models:/"):
        from alignflow.tasks.tracking import resolve_version

        tags = dict(resolve_version(ref, workspace).tags)
        store = store or tags.get("alignflow.store")
    artifacts = ArtifactStore(store or str(workspace.absolute() / "artifacts"))
    sys.stdout.write(renderers[format](trace(artifacts, find_artifact(artifacts, tags))))
