"""`alignflow data`: look at training data before anything is trained on it."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from alignflow.cli.options import Format, OutputFormat

app = typer.Typer(help="Check training data.", no_args_is_help=True)


@app.callback()
def data() -> None:
    """Check training data."""


