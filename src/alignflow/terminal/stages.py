"""What is known of each stage of a run, and the table that shows it."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from alignflow.reporting.text import format_compact, visible

Outcome = Literal["done", "reused", "failed"]
Status = Literal["waiting", "running", "done", "reused", "failed"]

_RECENT_S = 60.0
"""The rate, and so the time left, is taken from the steps of the last minute or the last four."""


@dataclass
class StageState:
    """What is known of a stage; times are Unix times, as in a job's metrics."""

    name: str
    status: Status = "waiting"
    phase: str = ""
    suite: str = ""
    """What an evaluation is judging on."""
    step: int | None = None
    num_steps: int | None = None
    loss: float | None = None
    tokens_per_s: float | None = None
    note: str = ""
    summary: str = ""
    started_at: float | None = None
    ended_at: float | None = None
    _steps: deque[tuple[float, int]] = field(default_factory=deque)

    @property
    def share(self) -> float | None:
        """Share of the steps that are done, 0..1; None where steps aren't counted."""
        if self.step is None or not self.num_steps:
            return None
        return min(self.step / self.num_steps, 1.0)

    @property
    def tenths(self) -> int:
        """Whole tenths of the steps that are done."""
        return 10 * self.step // self.num_steps if self.step and self.num_steps else 0

    def elapsed_s(self, now: float) -> float | None:
        """Return the time since the start, up to the end."""
        if self.started_at is None:
            return None
        return max((now if self.ended_at is None else self.ended_at) - self.started_at, 0.0)

    def left_s(self, now: float) -> float | None:
        """Return the time left at the recent rate; None before two steps are known."""
        if self.status != "running" or len(self._steps) < 2 or not self.num_steps:
            return None
        (first_time, first_step), (last_time, last_step) = self._steps[0], self._steps[-1]
        if last_step <= first_step or last_time <= first_time:
            return None
        seconds_per_step = (last_time - first_time) / (last_step - first_step)
        return max((self.num_steps - last_step) * seconds_per_step - (now - last_time), 0.0)

    def take(self, metrics: Mapping[str, Any], now: float) -> None:
        """Take in one line of metrics, which may be older than now where a job is re-attached.

        Lines that count no steps leave the count as it is. Steps that go back, as those of a
        resumed job do, start a new rate.
        """
        self.note = ""
        loss = metrics.get(f"{self.name}/loss")
        self.loss = float(loss) if isinstance(loss, int | float) else self.loss
        rate = metrics.get("tokens_per_s")
        self.tokens_per_s = float(rate) if isinstance(rate, int | float) else self.tokens_per_s
        step, num_steps = metrics.get("step"), metrics.get("num_steps")
        self.phase, self.suite = str(metrics.get("phase", "")), str(metrics.get("suite", ""))
        if not isinstance(step, int) or not isinstance(num_steps, int):
            return
        if num_steps != self.num_steps or (self._steps and step < self._steps[-1][1]):
            self._steps.clear()
        self.step, self.num_steps = step, num_steps
        time = metrics.get("time")
        written_at = float(time) if isinstance(time, int | float) else now
        self._steps.append((written_at, step))
        while len(self._steps) > 4 and written_at - self._steps[0][0] > _RECENT_S:
            self._steps.popleft()


_MARKS: dict[Status, tuple[str, str]] = {
    "waiting": ("·", "dim"),
    "running": ("▸", "bold cyan"),
    "done": ("✓", "green"),
    "reused": ("=", "green"),
    "failed": ("✗", "bold red"),
}
_ASCII_MARKS: dict[Status, str] = {
    "waiting": ".",
    "running": ">",
    "done": "+",
    "reused": "=",
    "failed": "x",
}


def stages_in_view(stages: Sequence[StageState], height: int) -> list[StageState]:
    """Return the stages that fit the height: early ended ones go first, then late waiting ones."""
    ended = [s for s in stages if s.status in ("done", "reused")]
    waiting = [s for s in stages if s.status == "waiting"]
    surplus = max(len(stages) - max(height, 1), 0)
    hidden = [*ended, *reversed(waiting)][:surplus]
    return [s for s in stages if not any(s is h for h in hidden)]


def stage_table(stages: Sequence[StageState], console: Console, now: float) -> Table:
    """Return the table of the stages, a line each, that fits the console's width."""
    is_ascii = console.options.ascii_only
    name_width = min(max((len(s.name) for s in stages), default=0) + 2, console.width // 3)
    progress_width = max(console.width - name_width - 8 - 2 * 8 - 4 * 2, 8)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("stage", width=name_width, no_wrap=True, overflow="ellipsis")
    table.add_column("status", width=8, no_wrap=True)
    table.add_column("progress", width=progress_width, no_wrap=True, overflow="ellipsis")
    table.add_column("time", width=8, justify="right", no_wrap=True)
    table.add_column("left", width=8, justify="right", no_wrap=True)
    for state in stages:
        mark, style = _MARKS[state.status]
        mark = _ASCII_MARKS[state.status] if is_ascii else mark
        elapsed_s, left_s = state.elapsed_s(now), state.left_s(now)
        table.add_row(
            Text(f"{mark} {state.name}", style=style),
            Text(state.status, style=style),
            _progress_cell(state, progress_width, is_ascii),
            Text("" if elapsed_s is None else _short_time(elapsed_s)),
            Text("" if left_s is None else _short_time(left_s)),
        )
    return table


def _progress_cell(state: StageState, width: int, is_ascii: bool) -> Text:
    if state.status != "running":
        return Text(state.summary, style="dim")
    if state.note:
        return Text(state.note, style="yellow")
    if state.share is None:
        return Text(state.phase, style="dim")
    shown = facts(state)
    # Facts fall off from the right before the bar gets shorter than a word.
    while len(shown) > 1 and len("  ".join(shown)) + 9 > width:
        shown.pop()
    words = "  ".join(shown)
    full, empty = ("#", ".") if is_ascii else ("━", "╌")
    cells = max(min(width - len(words) - 2, 24), 0)
    done = round(state.share * cells)
    bar = Text.assemble((full * done, "cyan"), (empty * (cells - done), "dim"))
    return Text.assemble(bar, "  " if cells else "", words)


def facts(state: StageState) -> list[str]:
    """Return step, suite, loss and rate in a few characters each."""
    facts = [f"{state.step}/{state.num_steps}"]
    if state.suite:
        facts.append(visible(state.suite))
    if state.loss is not None:
        facts.append(f"loss {state.loss:.4g}")
    if state.tokens_per_s is not None:
        facts.append(f"{format_compact(state.tokens_per_s)} tok/s")
    return facts


def _short_time(seconds: float) -> str:
    """Return `m:ss` or `h:mm:ss`."""
    whole = int(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"
