import io
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from rich.console import Console

from alignflow.reporting.comparison import Comparison, MethodTrials, TrialResult
from alignflow.reporting.model import ReportData
from alignflow.terminal import (
    Display,
    NullDisplay,
    PlainDisplay,
    RichDisplay,
    current_display,
    make_display,
    print_comparison,
    print_summary,
)
from alignflow.terminal.stages import StageState, stage_table, stages_in_view

STAGES = ["model", "benchmark-truthfulness", "sft", "reward_model", "dpo", "gate"]


class Clock:
    """Stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def console(width: int = 80, *, is_terminal: bool = False, encoding: str = "utf-8") -> Console:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)
    return Console(file=file, width=width, height=24, force_terminal=is_terminal, color_system=None)


def printed(console: Console) -> str:
    file = console.file
    assert isinstance(file, io.TextIOWrapper)
    assert isinstance(file.buffer, io.BytesIO)
    return file.buffer.getvalue().decode(file.encoding)


def step(number: int, num_steps: int = 100, **more: object) -> dict[str, object]:
    return {"phase": "train", "step": number, "num_steps": num_steps, **more}


def messages(console: Console) -> list[str]:
    """Return the plain lines without their time of day."""
    return [line.partition("  ")[2] for line in printed(console).splitlines()]


def run_events(display: Display, clock: Clock) -> Iterator[None]:
    """Tell of a run that has a stage in every state."""
    display.plan(STAGES)
    display.started("model")
    display.finished("model", "reused")
    display.started("benchmark-truthfulness")
    clock.now += 6
    display.finished("benchmark-truthfulness", "done", "60 items")
    display.started("sft")
    for number in range(1, 41):
        clock.now += 3
        loss = {"sft/loss": 2.4 - number / 100, "tokens_per_s": 742.3}
        display.progress("sft", step(number, 400, **loss))
        yield
    display.started("reward_model")
    display.note("reward_model", "waiting for a free slot")
    display.started("dpo")
    display.finished("dpo", "failed", "out of memory")
    yield


def test_plain_lines_tell_start_progress_and_end(clock: Clock) -> None:
    lines = console()
    display = PlainDisplay(lines, clock)
    for _ in run_events(display, clock):
        pass
    assert messages(lines)[:6] == [
        "model: started",
        "model: reused",
        "benchmark-truthfulness: started",
        "benchmark-truthfulness: done in 6.0 s; 60 items",
        "sft: started",
        "sft: step 4/400 (1 %), loss 2.36, 742 tok/s, 19 min 48 s left",
    ]
    assert messages(lines)[-3:] == [
        "reward_model: waiting for a free slot",
        "dpo: started",
        "dpo: failed in 0.0 s; out of memory",
    ]


def test_plain_lines_come_every_ten_seconds_or_tenths(clock: Clock) -> None:
    lines = console()
    display = PlainDisplay(lines, clock)
    display.started("sft")
    for number in range(1, 101):  # 100 s: the tenths and the ten seconds fall together
        clock.now += 1
        display.progress("sft", step(number))
    assert len(messages(lines)) == 1 + 10
    display.started("dpo")
    for number in range(1, 101):  # a second: no line but the first
        clock.now += 0.01
        display.progress("dpo", step(number))
    assert messages(lines)[11:] == ["dpo: started"]


def test_plain_note_is_said_once_while_it_stays_the_same(clock: Clock) -> None:
    lines = console()
    display = PlainDisplay(lines, clock)
    for text in ("waiting", "waiting"):
        display.note("sft", text)
    assert messages(lines) == ["sft: waiting"]


def test_plain_notes_that_count_leave_a_line_every_ten_seconds(clock: Clock) -> None:
    lines = console()
    display = PlainDisplay(lines, clock)
    for number in range(1, 31):  # 30 s
        clock.now += 1
        display.note("data", f"{number} rows")
    assert messages(lines) == ["data: 1 rows", "data: 11 rows", "data: 21 rows"]


def test_plain_lines_run_on_rather_than_wrap_and_hold_no_control_characters(clock: Clock) -> None:
    lines = console(width=40)
    PlainDisplay(lines, clock).finished("sft", "done", "/a/long/path" * 10 + "\x1b[2J[bold]")
    (line,) = messages(lines)
    assert line.endswith("/a/long/path[U+001B][2J[bold]")


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_table_keeps_to_the_width_and_one_line_a_stage(width: int, clock: Clock) -> None:
    terminal = console(width, is_terminal=True)
    display = RichDisplay(terminal, clock)
    for _ in run_events(display, clock):
        pass
    with terminal.capture() as capture:
        terminal.print(display._table())
    lines = capture.get().splitlines()
    assert len(lines) == 1 + len(STAGES)
    assert all(len(line) <= width for line in lines)


def test_table_says_where_every_stage_is(clock: Clock) -> None:
    terminal = console(90, is_terminal=True)
    display = RichDisplay(terminal, clock)
    for _ in run_events(display, clock):
        pass
    with terminal.capture() as capture:
        terminal.print(display._table())
    rows = {line.split()[1]: " ".join(line.split()) for line in capture.get().splitlines()[1:]}
    assert rows["model"].startswith("= model reused")
    assert rows["benchmark-truthfulness"].endswith("done 60 items 0:06")
    assert "40/400 loss 2 742 tok/s 2:00 18:00" in rows["sft"]
    assert rows["reward_model"].endswith("running waiting for a free slot 0:00")
    assert rows["dpo"].startswith("✗ dpo failed out of memory")
    assert rows["gate"] == "· gate waiting"


def test_table_is_ascii_where_the_terminal_is(clock: Clock) -> None:
    terminal = console(encoding="ascii", is_terminal=True)
    state = StageState("sft", "running", started_at=clock.now)
    state.take(step(50), clock.now)
    with terminal.capture() as capture:
        terminal.print(stage_table([state], terminal, clock.now))
    assert capture.get().isascii()
    assert "####" in capture.get()


def test_live_table_stays_whole_on_the_terminal(clock: Clock) -> None:
    terminal = console(is_terminal=True)
    terminal.height = 4
    display = RichDisplay(terminal, clock)
    with display:
        for _ in run_events(display, clock):
            pass
    last_frame = printed(terminal).rpartition("stage ")[2]
    assert all(stage in last_frame for stage in STAGES)


def test_running_stages_stay_in_view_of_a_low_terminal() -> None:
    stages = [
        StageState("a", "done"),
        StageState("b", "failed"),
        StageState("c", "running"),
        StageState("d"),
        StageState("e"),
    ]
    assert [s.name for s in stages_in_view(stages, 5)] == ["a", "b", "c", "d", "e"]
    assert [s.name for s in stages_in_view(stages, 3)] == ["b", "c", "d"]
    assert [s.name for s in stages_in_view(stages, 1)] == ["b", "c"]


def test_time_left_follows_the_recent_rate(clock: Clock) -> None:
    state = StageState("sft", "running", started_at=clock.now)
    state.take(step(0, 200), clock.now)
    assert state.left_s(clock.now) is None
    for number in range(1, 101):  # ten slow steps, then a second each
        clock.now += 30 if number <= 10 else 1
        state.take(step(number, 200), clock.now)
    assert state.left_s(clock.now) == pytest.approx(100)
    assert state.left_s(clock.now + 40) == pytest.approx(60)
    assert state.left_s(clock.now + 400) == 0


def test_time_left_of_a_reattached_job_goes_by_the_times_it_wrote(clock: Clock) -> None:
    state = StageState("sft", "running", started_at=clock.now)
    for number in range(1, 6):
        state.take(step(number, 10, time=clock.now - 50 + 10 * number), clock.now)
    assert state.left_s(clock.now) == pytest.approx(50)


def test_validation_lines_leave_the_step_and_its_rate(clock: Clock) -> None:
    state = StageState("sft", "running")
    for number in (1, 2):
        clock.now += 1
        state.take(step(number) | {"sft/loss": 2.0}, clock.now)
    state.take({"phase": "validate", "step": 2, "num_steps": 100}, clock.now)
    state.take({"phase": "save"}, clock.now)
    state.take(step(3), clock.now + 1)
    assert (state.step, state.loss) == (3, 2.0)
    assert state.left_s(clock.now + 1) == pytest.approx(97)


def test_evaluation_says_what_it_judges_on(clock: Clock) -> None:
    lines = console()
    display = PlainDisplay(lines, clock)
    display.started("evaluate-base")
    clock.now += 10
    metrics = {"phase": "evaluate", "suite": "toxicity", "step": 16, "num_steps": 120}
    display.progress("evaluate-base", metrics)
    assert messages(lines)[1] == "evaluate-base: step 16/120 (13 %), toxicity"


def test_a_stage_tried_again_starts_from_nothing(clock: Clock) -> None:
    lines = console()
    display = PlainDisplay(lines, clock)
    display.started("sft")
    clock.now += 100
    display.started("sft", "second attempt")
    clock.now += 5
    display.finished("sft", "done")
    assert messages(lines)[1:] == ["sft: started; second attempt", "sft: done in 5.0 s"]


def test_events_from_many_threads_are_all_shown(clock: Clock) -> None:
    lines = console()
    display = PlainDisplay(lines, clock)

    def run(stage: str) -> None:
        display.started(stage)
        for number in range(1, 101):
            display.progress(stage, step(number))
        display.finished(stage, "done")

    threads = [threading.Thread(target=run, args=(f"stage-{i}",)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = [f"stage-{i}: {what}" for i in range(8) for what in ("done in 0.0 s", "started")]
    assert sorted(messages(lines)) == expected


def test_display_that_fits_the_output() -> None:
    assert type(make_display(True, console(is_terminal=True))) is NullDisplay
    assert type(make_display(False, console(is_terminal=True))) is RichDisplay
    assert type(make_display(False, console())) is PlainDisplay


def test_current_display_is_the_one_entered_last() -> None:
    outer, inner = PlainDisplay(console()), NullDisplay()
    assert isinstance(current_display(), NullDisplay)
    with outer:
        with inner:
            assert current_display() is inner
        assert current_display() is outer
    assert current_display() is not outer


def test_silent_display_takes_every_event(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with make_display(True, console()) as display:
        for _ in run_events(display, clock):
            pass
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("passed", [True, False])
def test_summary_fits_80_columns_and_keeps_paths_whole(passed: bool) -> None:
    sample = Path(__file__).parents[1] / "assets" / "report.json"
    report = ReportData.model_validate_json(sample.read_text(encoding="utf-8"))
    path = "/a/long/path/to/the/run/folder/of/this/very/run/" + "x" * 60 + "/report.html"
    terminal = console()
    print_summary(
        terminal,
        passed=passed,
        sentence="The aligned model was judged.",
        reasons=["a rule " + "with a long reason " * 6, "[red]hostile\x1b[2J"],
        scores=report.scores,
        places={"report": path, "MLflow": "mlflow ui"},
    )
    lines = printed(terminal).splitlines()
    assert ("PASSED" if passed else "REFUSED") in lines[1]
    assert all(len(line) <= 80 for line in lines if path not in line)
    assert f"report  {path}" in lines
    assert "- [red]hostile[U+001B][2J" in printed(terminal)
    (row,) = [line.split() for line in lines if line.startswith("Truthfulness, MC2")]
    shares = ["43.1", "%", "44.8", "%", "48.0", "%", "51.2", "%"]  # of the champion too
    assert row[2:] == [*shares, "+8.1", "pts", "better"]


@pytest.mark.parametrize("width", [80, 120])
def test_comparison_shows_every_number_whole(width: int) -> None:
    trials = [
        TrialResult(seed=seed, scores={"preference/per_token_accuracy": 0.5 + seed / 10}, seconds=9)
        for seed in (1, 2)
    ]
    comparison = Comparison(
        pipeline="tiny",
        run_id="tiny-1",
        finished_at=datetime(2026, 1, 2, tzinfo=UTC),
        before={"base": {"preference/per_token_accuracy": 0.4773}, "sft": {}},
        methods=[MethodTrials(method=name, trials=trials) for name in ("dpo", "ppo", "steerlm")],
        machine="",
        versions={},
        recipe="",
    )
    lines = console(width=width)
    print_comparison(lines, comparison, {"report": "/a/page.html"})
    text = printed(lines)
    assert text.count("65.0 ± 7.1 %") == 3
    assert "47.7 %" in text
    assert all(len(line.rstrip()) <= width for line in text.splitlines())
