"""Options that several commands share."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Format(StrEnum):
    """How a command prints its result."""

    TABLE = "table"
    JSON = "json"


RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="Recipe file (YAML).")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one key, such as sft.seed=7."),
]
Workspace = Annotated[
    Path, typer.Option("--workspace", help="Folder of run folders, store and MLflow database.")
]
OutputFormat = Annotated[Format, typer.Option("--format", help="How to print the result.")]
DEFAULT_WORKSPACE = Path(".alignflow")
