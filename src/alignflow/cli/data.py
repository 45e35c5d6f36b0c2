"""`alignflow data`: look at training data before anything is trained on it, and mend it."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from alignflow.cli.options import DEFAULT_WORKSPACE, Format, OutputFormat, Workspace

app = typer.Typer(help="Look at training data, and mend it.", no_args_is_help=True)

REFUSED = 2


class Kind(StrEnum):
    """What the rows of a file are."""

    PREFERENCE = "preference"
    SFT = "sft"
    UNPAIRED = "unpaired"
    STEERLM = "steerlm"


@app.callback()
def data() -> None:
    """Look at training data, and mend it."""


@app.command()
def check(
    path: Annotated[str, typer.Argument(help="File, s3://… or hf://datasets/OWNER/NAME/FILE.")],
    kind: Annotated[Kind, typer.Option(help="What the rows are.")],
    against: Annotated[
        str | None, typer.Option(help="Training side of a split whose prompts must not occur.")
    ] = None,
    decontaminate: Annotated[
        list[str] | None, typer.Option(help="Benchmark file whose items must not occur.")
    ] = None,
    format: OutputFormat = Format.TABLE,
    workspace: Workspace = DEFAULT_WORKSPACE,
) -> None:
    """Decide on every row of a file; exits with 2 where nothing of it can be used."""
    from alignflow.data_validation.benchmarks import benchmark_texts
    from alignflow.data_validation.check import check_file
    from alignflow.data_validation.streams import NamedFile
    from alignflow.sources import fetch_file

    cache = workspace / "cache"
    file = fetch_file(path, cache)
    train = fetch_file(against, cache) if against else None
    report = check_file(
        file.path,
        kind.value,
        name=path,
        against=NamedFile(train.path, train.uri) if train else None,
        decontaminate=[
            text for uri in decontaminate or [] for text in benchmark_texts(fetch_file(uri, cache))
        ],
    )
    if format is Format.JSON:
        print(json.dumps(report.to_json(), ensure_ascii=False))
    else:
        print(report.to_text())
    if report.decision == "reject":
        raise typer.Exit(REFUSED)


@app.command()
def requeue(
    quarantine: Annotated[Path, typer.Argument(help="A quarantine.jsonl with repaired rows.")],
    kind: Annotated[Kind, typer.Option(help="What the rows are.")],
    to: Annotated[Path, typer.Option(help="File for the rows that pass: a source of a recipe.")],
) -> None:
    """Feed repaired rows of a quarantine back; exits with 2 where one is still refused.

    Rows are repaired under `row` in a copy of the quarantine: what is in the store stays as it is.
    """
    from alignflow.data_validation.report import printable
    from alignflow.data_validation.requeue import requeue as feed_back

    report = feed_back(quarantine, kind.value, to)
    print(
        f"{report.num_added} rows added to {to}, {report.num_there} there already, "
        f"{report.num_untouched} not changed, {len(report.refused)} still refused"
    )
    for row in report.refused:
        print(f"  line {row.line}, {row.reason}: {printable(row.message)}")
    if report.refused:
        raise typer.Exit(REFUSED)
