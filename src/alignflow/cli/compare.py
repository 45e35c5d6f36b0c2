"""`alignflow compare`: two models beside one another, item by item."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alignflow.cli.options import DEFAULT_WORKSPACE, Format, OutputFormat, Workspace
from alignflow.errors import ConfigError, DataError

if TYPE_CHECKING:
    from alignflow.artifacts import Artifact

_MODEL = "models:/NAME@ALIAS, models:/NAME/VERSION, or the digest of an evaluation."


def compare(
    first: Annotated[str, typer.Argument(metavar="MODEL_A", help=_MODEL)],
    second: Annotated[str, typer.Argument(metavar="MODEL_B", help=_MODEL)],
    format: OutputFormat = Format.TABLE,
    workspace: Workspace = DEFAULT_WORKSPACE,
) -> None:
    """Show what B scores above A, and whose answers win, on the items that both were judged on."""
    from rich.console import Console

    from alignflow.reporting.page import render_models
    from alignflow.tasks.scores import compare_models
    from alignflow.terminal import print_models

    workspace = workspace.absolute()
    evaluations = [(ref, *_find_evaluation(ref, workspace)) for ref in (first, second)]
    comparison = compare_models(*evaluations)
    digests = "-".join(evaluation.digest[:12] for _, evaluation, _ in evaluations)
    page = workspace / "comparisons" / f"{digests}.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(render_models(comparison), encoding="utf-8")
    if format is Format.JSON:
        print(comparison.model_dump_json(indent=2))
    else:
        print_models(Console(), comparison, str(page))


def _find_evaluation(ref: str, workspace: Path) -> tuple["Artifact", Path]:
    """Return the evaluation that a person names, and its folder on this machine."""
    from alignflow.artifacts import ArtifactStore

    store, digest = ArtifactStore(str(workspace / "artifacts")), ref
    if ref.startswith("models:/"):
        from alignflow.tasks.tracking import resolve_version

        tags = resolve_version(ref, workspace).tags
        if "alignflow.evaluation" not in tags:
            raise ConfigError(f"{ref} has no tag alignflow.evaluation; register it by a run.")
        store = ArtifactStore(tags.get("alignflow.store", store.url))
        digest = tags["alignflow.evaluation"]
    evaluation = store.get(digest)
    if evaluation.kind != "evaluation":
        raise DataError(f"{ref} is an artifact of kind {evaluation.kind}; give an evaluation's.")
    return evaluation, store.fetch(evaluation, workspace / "cache")
