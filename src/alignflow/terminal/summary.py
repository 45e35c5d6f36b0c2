"""What the terminal says when a run has ended."""

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from alignflow.reporting.comparison import Comparison, columns, rows
from alignflow.reporting.model import (
    MODEL_LABELS,
    ROLE_LABELS,
    ROLES,
    ModelComparison,
    ModelRole,
    ScoreRow,
)
from alignflow.reporting.scores import (
    format_difference,
    format_score,
    format_share,
    format_share_interval,
)
from alignflow.reporting.text import visible

_CHANGE_STYLES = {"better": "green", "worse": "red"}


def print_summary(
    console: Console,
    *,
    passed: bool,
    sentence: str,
    reasons: Sequence[str],
    scores: Sequence[ScoreRow],
    places: Mapping[str, str],
) -> None:
    """Print what came of a run: verdict, scores with their differences, where everything lies.

    Args:
        console: Where to print; long paths run on rather than break.
        passed: Whether the gate let the model pass.
        sentence: The verdict in one sentence.
        reasons: One sentence a rule.
        scores: Rows of the score table.
        places: What can be opened (`report`, `export`, `Prefect`, …), and its path, URL or command.
    """
    console.print()
    word = ("PASSED", "bold green") if passed else ("REFUSED", "bold red")
    console.print(Text.assemble(word, "  ", visible(sentence)))
    list_of_reasons = Table.grid(padding=(0, 1))
    for reason in reasons:
        list_of_reasons.add_row("-", Text(visible(reason)))
    console.print(list_of_reasons)
    if scores:
        console.print()
        console.print(_score_table(scores, console.width))
    _print_places(console, places)


def print_comparison(console: Console, comparison: Comparison, places: Mapping[str, str]) -> None:
    """Print what came of methods side by side: the table, and where everything lies.

    Args:
        console: Where to print.
        comparison: What was tried.
        places: As in `print_summary`.
    """
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    headings, lines = columns(comparison), rows(comparison)
    widths = [
        max(map(len, column))
        for column in zip(headings, *(line.cells for line in lines), strict=True)
    ]
    room = max(console.width - sum(widths) - 2 * len(widths), 12)
    table.add_column("", no_wrap=True, overflow="ellipsis", max_width=room)
    for heading, width in zip(headings, widths, strict=True):
        table.add_column(heading, justify="right", no_wrap=True, min_width=width)
    for line in lines:
        table.add_row(line.label, *line.cells)
    console.print()
    console.print(table)
    _print_places(console, places)


def print_models(console: Console, comparison: ModelComparison, page: str) -> None:
    """Print two models side by side: scores with their differences, and who wins.

    Args:
        console: Where to print.
        comparison: The two.
        page: Where the page lies.
    """
    console.print(Text(f"A is {visible(comparison.first)}, B is {visible(comparison.second)}"))
    console.print()
    console.print(_score_table(comparison.scores, console.width, MODEL_LABELS))
    for row in comparison.win_rates:
        console.print()
        console.print(
            f"B's answers win {format_share(row.rate)} of {row.num_prompts} prompts "
            f"({format_share_interval(row.interval)}), at equal length "
            f"{format_share(row.length_controlled)}; they are {row.tokens:.0f} tokens long, "
            f"A's {row.other_tokens:.0f}.",
            soft_wrap=True,
        )
    _print_places(console, {"page": page})


def _print_places(console: Console, places: Mapping[str, str]) -> None:
    console.print()
    width = max((len(name) for name in places), default=0)
    for name, place in places.items():
        line = Text.assemble((name.ljust(width), "dim"), "  ", visible(place))
        console.print(line, soft_wrap=True)


def _score_table(
    scores: Sequence[ScoreRow], width: int, labels: Mapping[ModelRole, str] = ROLE_LABELS
) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    roles = [role for role in ROLES if any(role in row.values for row in scores)]
    others = 16 + 10 * len(roles)
    table.add_column("score", no_wrap=True, overflow="ellipsis", max_width=max(width - others, 12))
    for heading in (*(labels[role] for role in roles), "difference"):
        table.add_column(heading, justify="right", no_wrap=True, overflow="ellipsis")
    table.add_column("", no_wrap=True)
    for row in scores:
        style = _CHANGE_STYLES.get(row.change or "", "")
        word = row.change if row.change in ("better", "worse", "unclear") else ""
        table.add_row(
            Text(row.label),
            *(Text(format_score(row, row.values.get(role))) for role in roles),
            Text(format_difference(row), style=style),
            Text(word, style=style or "dim"),
        )
    return table
