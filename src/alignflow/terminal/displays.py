"""Displays of a running pipeline; they are told of events from any thread.

On a terminal a live table with a line a stage; without one, plain lines; with `--json`, nothing.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Protocol, Self

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from alignflow.reporting.text import format_seconds, visible
from alignflow.terminal.stages import Outcome, StageState, facts, stage_table, stages_in_view

Clock = Callable[[], float]
_Event = Literal["started", "progress", "note", "finished"]

_LINE_EVERY_S = 10.0
_LINE_AT_LEAST_S = 2.0
"""Every tenth of the steps gives a line too, but not in a stage that takes seconds."""


class Display(Protocol):
    """Shows a run; every method may be called from any thread."""

    def __enter__(self) -> Self:
        """Begin to show, as this process's current display."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop showing; what stands on the terminal stays."""

    def plan(self, stages: Sequence[str]) -> None:
        """Name the stages of the run, in their order."""

    def started(self, stage: str, note: str = "") -> None:
        """Tell that a stage has begun; one that wasn't planned joins at the end."""

    def progress(self, stage: str, metrics: Mapping[str, Any]) -> None:
        """Tell of one line of a job's `metrics.jsonl`."""

    def note(self, stage: str, text: str) -> None:
        """Say what a stage is waiting for; its next progress takes the words away."""

    def finished(self, stage: str, status: Outcome, summary: str = "") -> None:
        """Tell that a stage has ended."""


_entered: list[Display] = []


def current_display() -> Display:
    """Return the display that was entered last in this process, or one that shows nothing."""
    return _entered[-1] if _entered else NullDisplay()


def make_display(json: bool, console: Console) -> Display:
    """Return the display that fits: none for `--json`, a live table on a terminal, else lines."""
    if json:
        return NullDisplay()
    return RichDisplay(console) if console.is_terminal else PlainDisplay(console)


class NullDisplay(Display):
    """Shows nothing, and so leaves standard output to JSON; the base of those that show."""

    def __enter__(self) -> Self:
        """Become the current display."""
        _entered.append(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Hand back to the display before."""
        _entered.remove(self)

    def plan(self, stages: Sequence[str]) -> None:
        """Show nothing."""

    def started(self, stage: str, note: str = "") -> None:
        """Show nothing."""

    def progress(self, stage: str, metrics: Mapping[str, Any]) -> None:
        """Show nothing."""

    def note(self, stage: str, text: str) -> None:
        """Show nothing."""

    def finished(self, stage: str, status: Outcome, summary: str = "") -> None:
        """Show nothing."""


class _StageDisplay(NullDisplay):
    """Keeps the state of every stage under one lock, and calls `_show` after each change."""

    def __init__(self, console: Console, clock: Clock = time.time) -> None:
        self._console = console
        self._clock = clock
        self._lock = threading.RLock()
        self._stages: dict[str, StageState] = {}

    def plan(self, stages: Sequence[str]) -> None:
        """Forget what was and wait for these stages."""
        with self._lock:
            self._stages = {name: StageState(name) for name in stages}

    def started(self, stage: str, note: str = "") -> None:
        """Start the stage's clock, anew where a stage is tried again."""
        with self._lock:
            state = StageState(stage, "running", note=visible(note), started_at=self._clock())
            self._stages[stage] = state
            self._show(state, "started")

    def progress(self, stage: str, metrics: Mapping[str, Any]) -> None:
        """Take step, loss and rate from the line."""
        with self._lock:
            state = self._begun(stage)
            state.take(metrics, self._clock())
            self._show(state, "progress")

    def note(self, stage: str, text: str) -> None:
        """Show the words in place of the progress."""
        with self._lock:
            state = self._begun(stage)
            if state.note != visible(text):
                state.note = visible(text)
                self._show(state, "note")

    def finished(self, stage: str, status: Outcome, summary: str = "") -> None:
        """Stop the stage's clock."""
        with self._lock:
            state = self._stages.setdefault(stage, StageState(stage))
            state.status, state.summary, state.note = status, visible(summary), ""
            state.ended_at = self._clock()
            self._show(state, "finished")

    def _begun(self, stage: str) -> StageState:
        state = self._stages.setdefault(stage, StageState(stage))
        if state.status == "waiting":
            state.status, state.started_at = "running", self._clock()
        return state

    def _show(self, state: StageState, event: _Event) -> None:
        """Show what an event changed; the lock is held."""


class PlainDisplay(_StageDisplay):
    """One line at a stage's start and end, and now and then between."""

    def __init__(self, console: Console, clock: Clock = time.time) -> None:
        super().__init__(console, clock)
        self._printed: dict[str, tuple[float, int, _Event]] = {}  # time, tenths, kind of last line

    def _show(self, state: StageState, event: _Event) -> None:
        now = self._clock()
        if event in ("progress", "note") and not self._is_due(state, event, now):
            return
        self._printed[state.name] = (now, state.tenths, event)
        clock = time.strftime("%H:%M:%S", time.localtime(now))
        words = {
            "started": f"started{_aside(state.note)}",
            "note": state.note,
            "progress": _progress_words(state, now),
            "finished": _ending(state, now),
        }[event]
        self._console.print(Text(f"{clock}  {state.name}: {words}"), soft_wrap=True)

    def _is_due(self, state: StageState, event: _Event, now: float) -> bool:
        last_at, last_tenths, last_event = self._printed.get(state.name, (now, 0, "started"))
        since = now - last_at
        if event == "note":  # counted rows give a note every few milliseconds
            return last_event != "note" or since >= _LINE_EVERY_S
        if state.share is None:
            return False
        return since >= _LINE_EVERY_S or (state.tenths > last_tenths and since >= _LINE_AT_LEAST_S)


class RichDisplay(_StageDisplay):
    """A live table, redrawn four times a second; it stays on the terminal when the run ends."""

    _is_over = False

    def __enter__(self) -> Self:
        """Start to draw."""
        super().__enter__()
        self._live = Live(
            console=self._console,
            get_renderable=self._table,
            refresh_per_second=4,
            vertical_overflow="crop",
        )
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Draw all stages once more and leave the table where it is."""
        self._is_over = True
        self._live.stop()
        super().__exit__(kind, error, trace)

    def _table(self) -> RenderableType:
        with self._lock:
            stages = list(self._stages.values())
            if not stages:
                return Text()
            if not self._is_over:  # a heading and the cursor's line take two
                stages = stages_in_view(stages, self._console.height - 2)
            return stage_table(stages, self._console, self._clock())


def _progress_words(state: StageState, now: float) -> str:
    step, *rest = facts(state)
    left_s = state.left_s(now)
    words = [f"step {step} ({100 * (state.share or 0):.0f} %)", *rest]
    if left_s is not None:
        words.append(f"{format_seconds(left_s)} left")
    return ", ".join(words)


def _ending(state: StageState, now: float) -> str:
    elapsed_s = state.elapsed_s(now)
    took = (
        "" if elapsed_s is None or state.status == "reused" else f" in {format_seconds(elapsed_s)}"
    )
    return f"{state.status}{took}{_aside(state.summary)}"


def _aside(text: str) -> str:
    return f"; {text}" if text else ""
