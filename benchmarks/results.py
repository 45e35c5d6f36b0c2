"""The results files: what a benchmark measured, on which machine and day, with which versions.

Every file in `results/` is written by a benchmark that was run with `--write`, never by hand.
`python benchmarks/results.py` then puts their tables into the README and the pages of docs/, each
between two comments:

    <!-- table 1 of cost.md -->
    <!-- end of table -->
"""

import argparse
import itertools
import os
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
_ROOT = Path(__file__).parents[1]
QUOTING = (_ROOT / "README.md", *sorted((_ROOT / "docs").glob("*.md")))
"""Pages that may quote tables."""

_PACKAGES = ("torch", "megatron-core", "transformers")
_DATE = "measured"
_QUOTE = re.compile(
    r"(?P<begin><!-- table (?P<number>\d+) of (?P<name>\w+\.md) -->\n)"
    r".*?(?P<end><!-- end of table -->)",
    re.DOTALL,
)


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
    def read_all(cls, markdown: str) -> "list[Table]":
        """Return the tables of a text."""
        blocks = itertools.groupby(markdown.splitlines(), lambda line: line.startswith("|"))
        return [_table(list(lines)) for is_table, lines in blocks if is_table]


def _table(lines: Sequence[str]) -> Table:
    columns, _, *rows = (tuple(map(str.strip, line[1:-1].split("|"))) for line in lines)
    return Table(columns, tuple(rows))


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
    given = []
    for name, value in vars(args).items():
        if name in (*but, "write") or value == parser.get_default(name):
            continue
        values = [] if value is True else value if _is_many(value) else [value]
        given += [f"--{name.replace('_', '-')}", *map(str, values)]
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
    filled = [_filled(each) if isinstance(each, str) else each for each in sections]
    facts = _filled(f"{_today()}; {machine(also)}.")
    _write(path, [f"# {title}", _filled(about), facts, *filled])


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
        dated = _merged(Table.read_all(before)[0], dated)
    _write(path, [*head, dated])


def machine(also: Sequence[str] = ()) -> str:
    """Return in a phrase the processor, how much of it may be used, and versions."""
    versions = [f"{package} {version(package)}" for package in _PACKAGES]
    name, has_amx = _processor()
    cores = f"{len(os.sched_getaffinity(0))} cores of {name}{' with AMX' if has_amx else ''}"
    return f"{cores}; {', '.join([*versions, *also])}"


def with_quotes(text: str) -> str:
    """Return a text with the tables that its comments ask for, as the results files have them."""

    def quoted(match: re.Match[str]) -> str:
        tables = Table.read_all((RESULTS / match["name"]).read_text(encoding="utf-8"))
        return f"{match['begin']}\n{tables[int(match['number']) - 1]}\n\n{match['end']}"

    return _QUOTE.sub(quoted, text)


def _merged(old: Table, new: Table) -> Table:
    """Return the rows of both in the order in which they first came, the new where both have it."""
    if old.columns != new.columns:
        return new
    rows = {row[0]: row for row in old.rows} | {row[0]: row for row in new.rows}
    return Table(new.columns, tuple(rows.values()))


def _processor() -> tuple[str, bool]:
    """Return the name of the processor, and whether it multiplies matrices in bf16 by tiles."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    facts = {name.strip(): value for name, _, value in (line.partition(":") for line in lines)}
    name = facts.get("model name", "an unnamed processor").strip()
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


if __name__ == "__main__":
    for page in QUOTING:
        page.write_text(with_quotes(page.read_text(encoding="utf-8")), encoding="utf-8")
