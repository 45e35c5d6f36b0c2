"""What a check of one file found, for a program and for a person."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal

from alignflow.data_validation.checking import CheckedBlock, Decision
from alignflow.data_validation.masking import masked
from alignflow.data_validation.reasons import FLAGS, REASONS

FileDecision = Literal["accept", "partial", "reject"]

_MAX_EXAMPLES = 5
_EXCERPT_CHARS = 100


@dataclass(frozen=True, slots=True)
class RowReport:
    """One row that was not plainly accepted."""

    line: int
    decision: str
    reason: str | None
    flags: tuple[str, ...]
    message: str = ""
    """Why it is refused."""
    excerpt: str = ""
    """How a refused row starts, of the first few."""

    def to_json(self) -> dict[str, Any]:
        """Return the row's entry in the JSON report."""
        return {
            "line": self.line,
            "decision": self.decision,
            "reason": self.reason,
            "flags": list(self.flags),
        }


@dataclass(slots=True)
class FileReport:
    """The decisions on one file: on the whole, and on each row that was not plainly accepted."""

    file: str
    reason: str | None = None
    """Code for which the whole file is refused."""
    message: str | None = None
    """The sentence that goes with `reason`."""
    rows: list[RowReport] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    """Rows by outcome: `accept`, `reject`, `skip`."""

    def add_block(self, checked: CheckedBlock) -> None:
        """Take the rows of another block into account."""
        self.counts["accept"] += checked.num_plain
        for decision in checked.noted():
            self._add(decision)

    def _add(self, decision: Decision) -> None:
        self.counts[decision.outcome] += 1
        is_example = decision.outcome == "reject" and self.counts["reject"] <= _MAX_EXAMPLES
        self.rows.append(
            RowReport(
                decision.line,
                decision.outcome,
                decision.reason,
                decision.flags,
                decision.message,
                _shown(decision) if is_example else "",
            )
        )

    @property
    def decision(self) -> FileDecision:
        """`accept` if no row is refused, `reject` if none is accepted, else `partial`."""
        if self.reason or not self.counts["accept"]:
            return "reject"
        return "partial" if self.counts["reject"] else "accept"

    @property
    def reasons(self) -> Counter[str]:
        """Refused rows by reason."""
        return Counter(row.reason for row in self.rows if row.reason)

    @property
    def flags(self) -> Counter[str]:
        """Accepted rows by flag."""
        return Counter(flag for row in self.rows for flag in row.flags)

    def to_json(self) -> dict[str, Any]:
        """Return the object that `data check --format json` prints."""
        return {
            "file": self.file,
            "decision": self.decision,
            "reason": self.reason,
            "rows": [row.to_json() for row in self.rows],
            "counts": {name: self.counts[name] for name in ("accept", "reject", "skip")},
        }

    def to_text(self) -> str:
        """Return a summary for the terminal: counts, reasons with first examples, flags.

        What a data file holds is shown with control characters escaped, and nothing is markup.
        """
        lines = [f"{self.file}: {self.decision}"]
        if self.message:
            lines.append(f"  {self.message}")
        if self.counts:
            counts = self.counts
            lines.append(
                f"  {counts['accept']} rows accepted, {counts['reject']} refused, "
                f"{counts['skip']} blank"
            )
        lines += _table("refused", self.reasons, REASONS)
        lines += _table("flagged", self.flags, FLAGS)
        refused = [row for row in self.rows if row.decision == "reject"]
        if refused:
            lines += ["", "  first refused rows"]
            lines += [f"    {_example(row)}" for row in refused[:_MAX_EXAMPLES]]
        return "\n".join(lines)


def _table(title: str, counts: Counter[str], meanings: dict[str, str]) -> list[str]:
    if not counts:
        return []
    width = max(map(len, counts))
    rows = [
        f"  {count:>9}  {code:<{width}}  {meanings[code]}" for code, count in counts.most_common()
    ]
    return ["", f"  {title}", *rows]


def _example(row: RowReport) -> str:
    return f"line {row.line}, {row.reason} ({printable(row.message)}): {printable(row.excerpt)}"


def printable(text: str) -> str:
    """Return the text with what a terminal would act on, or not show, escaped."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def _shown(decision: Decision) -> str:
    # What is cut off may be half of a key: look at more than is shown.
    return masked(decision.row.excerpt(4 * _EXCERPT_CHARS))[:_EXCERPT_CHARS]
