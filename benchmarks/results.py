"""The results files: what a benchmark measured, on which machine and day, with which versions.

Every file in `results/` is written by a benchmark that was run with `--write`, never by hand.
"""

import argparse
import os
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path

RESULTS = Path(__file__).parent / "results"

_PACKAGES = ("torch", "megatron-core", "transformers")
_DATE = "measured"


@dataclass(frozen=True)
class Table:
    """A table of texts."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def __str__(self) -> str:
        """Return it in Markdown; numbers, every column but the first, stand on the right."""
        rule = ("---", *["---:"] * (len(self.columns) - 1))
        return "\n".join(f"| {' | '.join(row)} |" for row in (self.columns, rule, *self.rows))

    @classmethod
    def read(cls, markdown: str) -> "Table":
        """Return the first table of a text, one without columns where there is none."""
        lines = [line for line in markdown.splitlines() if line.startswith("| ")]
        cells = [tuple(cell.strip() for cell in line[1:-1].split("|")) for line in lines]
        return cls(cells[0], tuple(cells[2:])) if cells else cls((), ())


def add_write_option(parser: argparse.ArgumentParser, name: str) -> None:
    """Let the command line ask for a results file, `results/NAME.md` unless it names another."""
    parser.add_argument(
        "--write",
        nargs="?",
        type=Path,
        const=RESULTS / f"{name}.md",
        metavar="FILE",
        help=f"write the results file, results/{name}.md unless another is given",
    )


def options_given(
    parser: argparse.ArgumentParser, args: argparse.Namespace, *, but: Sequence[str]
) -> str:
    """Return the options that differ from their defaults, except `--write` and those named."""
    given = [
        f"--{name.replace('_', '-')} {' '.join(map(str, value if _is_many(value) else [value]))}"
        for name, value in vars(args).items()
        if name not in (*but, "write") and value != parser.get_default(name)
    ]
    return f"`{' '.join(given)}`" if given else "defaults"


def write(
    path: Path, title: str, about: str, sections: Sequence[str | Table], *, also: Sequence[str] = ()
) -> None:
    """Write a results file anew.

    Args:
        path: The file.
        title: Its heading.
        about: What was measured, and how.
        sections: Tables, and what is said before or after them.
        also: Versions and devices besides those of `machine`.
    """
    _write(
        path, [f"# {title}", _filled(about), _filled(f"{_today()}; {machine(also)}."), *sections]
    )


def update(path: Path, title: str, about: str, table: Table, *, also: Sequence[str] = ()) -> None:
    """Put rows into the only table of a results file; each says on which day it was measured.

    A row replaces the one that begins alike, and the others stay, unless they were measured on
    another machine or with other versions: then they are left out.

    Args:
        path: The file, new or not.
        title: Its heading.
        about: What is measured, and how.
        table: The new rows; the first column tells them apart.
        also: Versions and devices besides those of `machine`.
    """
    head = [f"# {title}", _filled(about), _filled(f"Measured on {machine(also)}.")]
    dated = Table((*table.columns, _DATE), tuple((*row, _today()) for row in table.rows))
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    if before.startswith("\n\n".join(head) + "\n"):
        dated = _merged(Table.read(before), dated)
    _write(path, [*head, dated])


def machine(also: Sequence[str] = ()) -> str:
    """Return in a phrase the processor, how much of it may be used, and versions."""
    versions = [f"{package} {version(package)}" for package in _PACKAGES]
    name, has_amx = _processor()
    cores = f"{len(os.sched_getaffinity(0))} cores of {name}{' with AMX' if has_amx else ''}"
    return f"{cores}; {', '.join([*versions, *also])}"


def _merged(old: Table, new: Table) -> Table:
    """Return the rows of both in the order in which they first came, the new where both have it."""
    if old.columns != new.columns:
        return new
    rows = {row[0]: row for row in old.rows} | {row[0]: row for row in new.rows}
    return Table(new.columns, tuple(rows.values()))


def _processor() -> tuple[str, bool]:
    """Return the name of the processor, and whether it multiplies matrices in bf16 by tiles."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    facts = dict(map(str.strip, line.split(":", 1)) for line in lines if ":" in line)
    name = facts.get("model name", "an unnamed processor")
    return name, "amx_bf16" in facts.get("flags", "").split()


def _filled(text: str) -> str:
    return textwrap.fill(text, 100)


def _is_many(value: object) -> bool:
    return isinstance(value, list | tuple)


def _today() -> str:
    return f"{date.today():%-d %B %Y}"


def _write(path: Path, blocks: Sequence[str | Table]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n\n".join(str(block) for block in blocks) + "\n", encoding="utf-8")
    print(f"Wrote {path}.")
