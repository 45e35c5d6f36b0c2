"""The table of faults and their outcomes in docs/reliability.md, which this script writes."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from chaos.faults import FAULTS, Fault

ROOT = Path(__file__).parents[3]
OUTCOMES = ROOT / "build" / "chaos" / "outcomes"
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- faults: written by make chaos -->", "<!-- end of faults -->"


@dataclass(frozen=True)
class Outcome:
    """What became of one fault; written only where every check has passed."""

    fault: str
    moment: str
    seed: int
    outcome: str
    helper: str
    seconds: float
    """From the fault to the end of the pipeline."""

    @classmethod
    def of(cls, fault: Fault, moment: str, seed: int, seconds: float) -> Self:
        """Return the outcome of a fault that was put right."""
        return cls(fault.name, moment, seed, fault.outcome, fault.helper, round(seconds, 1))

    def write(self, folder: Path) -> None:
        """Keep it for the table."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.fault.replace(' ', '-')}.json"
        path.write_text(json.dumps(asdict(self), indent=2), encoding="utf-8")


def main() -> None:
    """Write the table into the page."""
    found = {
        outcome.fault: outcome
        for path in OUTCOMES.glob("*.json")
        for outcome in [Outcome(**json.loads(path.read_text(encoding="utf-8")))]
    }
    in_order = [found[fault.name] for fault in FAULTS if fault.name in found]
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(with_table(page, table(in_order)), encoding="utf-8")
    print(f"{len(in_order)} of {len(FAULTS)} faults: {PAGE}")


def table(outcomes: Sequence[Outcome]) -> str:
    """Return the table of outcomes."""
    rows = [
        f"| {each.fault} | {each.moment} | {each.seed} | {each.outcome} | {each.helper} "
        f"| {each.seconds:.0f} |"
        for each in outcomes
    ]
    head = "| fault | moment | seed | the run | put right by | s to the end |"
    return "\n".join([head, "|---|---|---|---|---|---|", *rows])


def with_table(page: str, rows: str) -> str:
    """Return the page with the table between its markers."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{rows}\n\n{END}{after}"


if __name__ == "__main__":
    main()
