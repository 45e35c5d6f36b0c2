import pytest

from alignflow.reporting.charts import bucketed, dot_plot, labelled, line_chart, nice_ticks
from alignflow.reporting.model import CurvePoint, ScoreRow

SIZE = {"width": 260, "height": 170}


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 1, [0, 0.25, 0.5, 0.75, 1]),
        (0.31, 0.72, [0.4, 0.6]),
        (-7, 33, [0, 10, 20, 30]),
        (0, 1e-5, [0, 2.5e-6, 5e-6, 7.5e-6, 1e-5]),
    ],
)
def test_ticks_are_round_and_within_the_bounds(low: float, high: float, ticks: list[float]) -> None:
    assert nice_ticks(low, high) == pytest.approx(ticks)


def test_labels_of_an_axis_have_the_same_decimals() -> None:
    assert [label for _, label in labelled([1.75, 2.0, 2.25])] == ["1.75", "2.00", "2.25"]
    assert [label for _, label in labelled([-1.0, 0.0])] == ["\N{MINUS SIGN}1", "0"]


def test_a_short_series_is_drawn_point_by_point() -> None:
    points = [(step, float(step)) for step in range(240)]
    assert [(b.step, b.low) for b in bucketed(points)] == points


def test_a_long_series_keeps_its_mean_and_its_spikes() -> None:
    points = [(step, 9.0 if step == 4321 else 1.0) for step in range(12_000)]
    buckets = bucketed(points)
    assert len(buckets) == 120  # of 100 points each
    assert max(b.high for b in buckets) == 9.0
    assert sum(b.mean for b in buckets) / 120 == pytest.approx(1.0 + 8 / 12_000)
    chart = line_chart("Loss", [CurvePoint(step=s, loss=v) for s, v in points], LOSS, **SIZE)
    assert chart is not None
    assert chart.lines[0].band is not None
    assert len(chart.lines[0].path) < 3000


LOSS = [("loss", "training"), ("held_out_loss", "held out")]


def test_chart_places_points_inside_its_frame() -> None:
    points = [CurvePoint(step=step, loss=2.0 - step / 10) for step in range(11)]
    chart = line_chart("Loss", points, LOSS, **SIZE)
    assert chart is not None
    (line,) = chart.lines  # nothing was measured on held-out rows
    assert line.words == "2 → 1"
    assert [dot.x for dot in line.dots] == sorted(dot.x for dot in line.dots)
    assert [dot.y for dot in line.dots] == sorted(dot.y for dot in line.dots)  # falls: y grows
    assert all(chart.left <= dot.x <= chart.right for dot in line.dots)
    assert all(0 <= dot.y <= chart.bottom for dot in line.dots)
    assert line.dots[0].title == "step 0: 2"


@pytest.mark.parametrize("value", [0.0, 1.0, -3.5, 1e-9, 1e30])
def test_chart_of_a_single_or_constant_value_has_an_axis(value: float) -> None:
    chart = line_chart("Loss", [CurvePoint(step=5, loss=value)], LOSS, **SIZE)
    assert chart is not None
    assert chart.y_ticks


def test_there_is_no_chart_of_nothing() -> None:
    assert line_chart("Loss", [CurvePoint(step=1, grad_norm=1.0)], LOSS, **SIZE) is None
    assert dot_plot(ScoreRow(name="s", label="S"), width=250) is None


def test_dot_plot_orders_marks_as_their_values_and_draws_intervals() -> None:
    row = ScoreRow(
        name="s",
        label="S",
        is_share=True,
        values={"aligned": 0.7, "base": 0.5},
        intervals={"base": (0.4, 0.6)},
    )
    plot = dot_plot(row, width=250)
    assert plot is not None
    base, aligned = plot.marks
    assert base.role == "base"
    assert 0 < base.x < aligned.x < 250
    assert base.low is not None
    assert base.high is not None
    assert base.x - base.low == pytest.approx(base.high - base.x, abs=0.2)
    assert aligned.low is None
    assert base.title == "base: 50.0 % (40.0 to 60.0 %)"


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_scale_of_shares_stays_within_0_and_1(share: float) -> None:
    row = ScoreRow(name="s", label="S", is_share=True, values={"base": share})
    plot = dot_plot(row, width=250)
    assert plot is not None
    assert all(
        tick.label in ("0 %", "10 %", "20 %", "80 %", "90 %", "100 %") for tick in plot.ticks
    )
