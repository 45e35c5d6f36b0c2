"""Geometry of the page's charts: numbers in, coordinates out; the template draws them."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from alignflow.reporting.model import ROLE_LABELS, ROLES, CurvePoint, ModelRole, ScoreRow
from alignflow.reporting.scores import format_interval, format_score, with_minus
from alignflow.reporting.text import format_compact, format_number

_MAX_POINTS = 240
_NUM_BUCKETS = 120


@dataclass(frozen=True)
class Tick:
    """A position on an axis, in pixels, and what stands there."""

    at: float
    label: str


@dataclass(frozen=True)
class Dot:
    """A marked point, in pixels; `title` is what a pointer resting on it shows."""

    x: float
    y: float
    title: str


@dataclass(frozen=True)
class Line:
    """One series as SVG paths, with its points where they are few."""

    series: str
    """Quantity, which is also the colour class."""
    label: str
    path: str
    band: str | None
    """Area between the lowest and the highest of each bucket; None where all points are drawn."""
    dots: list[Dot]
    words: str
    """First and last value, or the peak of a schedule."""


@dataclass(frozen=True)
class LineChart:
    """A chart over steps; all positions in pixels from the top left."""

    title: str
    width: int
    height: int
    left: float
    right: float
    bottom: float
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    lines: list[Line]


@dataclass(frozen=True)
class Mark:
    """One model's value in a dot plot, with its 95 % interval where known."""

    role: str
    x: float
    y: float
    low: float | None
    high: float | None
    title: str


@dataclass(frozen=True)
class DotPlot:
    """The models' values of one score on one scale."""

    width: int
    bottom: float
    """Where the axis lies."""
    marks: list[Mark]
    ticks: list[Tick]


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Return round numbers, about `count` of them, that lie within the bounds."""
    step = _nice_step((high - low) / max(count, 1))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def labelled(values: Sequence[float]) -> list[tuple[float, str]]:
    """Return each value with its label, all with the decimals that the finest needs."""
    largest = max((abs(value) for value in values), default=0.0)
    if not 1e-3 <= largest < 1e5:
        return [(value, format_number(value)) for value in values]
    texts = [f"{value:.6f}".rstrip("0") for value in values]
    decimals = max(len(text.partition(".")[2]) for text in texts)
    return [(value, with_minus(f"{value:,.{decimals}f}")) for value in values]


def _nice_step(rough: float) -> float:
    magnitude = 10.0 ** math.floor(math.log10(rough))
    return next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= rough * (1 - 1e-9))


class Bucket(NamedTuple):
    """Neighbouring points of a long series, drawn as one."""

    step: float
    mean: float
    low: float
    high: float


def bucketed(points: Sequence[tuple[int, float]]) -> list[Bucket]:
    """Return a long series in buckets of equal size, and a short one point by point."""
    size = 1 if len(points) <= _MAX_POINTS else math.ceil(len(points) / _NUM_BUCKETS)
    buckets = []
    for start in range(0, len(points), size):
        steps, values = zip(*points[start : start + size], strict=True)
        mean = math.fsum(values) / len(values)
        buckets.append(Bucket(sum(steps) / len(steps), mean, min(values), max(values)))
    return buckets


def line_chart(
    title: str,
    points: Sequence[CurvePoint],
    series: Sequence[tuple[str, str]],
    *,
    width: int,
    height: int,
) -> LineChart | None:
    """Lay out the named quantities of the points over their steps.

    Args:
        title: What the chart shows.
        points: Points of one stage.
        series: Quantity (a field of CurvePoint) and its label; the field is also its colour class.
        width: Pixels.
        height: Pixels.

    Returns:
        None where no point has any of the quantities.
    """
    values = {
        field: [(p.step, v) for p in points if (v := getattr(p, field)) is not None]
        for field, _ in series
    }
    everything = [point for of_field in values.values() for point in of_field]
    if not everything:
        return None
    left, right, top, bottom = 44.0, width - 10.0, 10.0, height - 24.0
    x_low, x_high = _padded([step for step, _ in everything], 0)
    y_low, y_high = _padded([value for _, value in everything], 0.06)

    def place(step: float, value: float) -> tuple[float, float]:
        return (
            round(left + (step - x_low) / (x_high - x_low) * (right - left), 1),
            round(bottom - (value - y_low) / (y_high - y_low) * (bottom - top), 1),
        )

    return LineChart(
        title=title,
        width=width,
        height=height,
        left=left,
        right=right,
        bottom=bottom,
        x_ticks=[
            Tick(place(step, y_low)[0], format_compact(step))
            for step in nice_ticks(x_low, x_high, 4)
            if step == int(step)
        ],
        y_ticks=[
            Tick(place(x_low, value)[1], label)
            for value, label in labelled(nice_ticks(y_low, y_high, 5))
        ],
        lines=[
            _line(field, label, values[field], place) for field, label in series if values[field]
        ],
    )


def _line(
    field: str,
    label: str,
    values: list[tuple[int, float]],
    place: Callable[[float, float], tuple[float, float]],
) -> Line:
    buckets = bucketed(values)
    is_whole = len(buckets) == len(values)
    is_few = len(values) <= 24 or field.startswith("held_out")
    return Line(
        series=field,
        label=label,
        path=_polyline([place(b.step, b.mean) for b in buckets]),
        band=None
        if is_whole
        else _polyline(
            [place(b.step, b.high) for b in buckets]
            + [place(b.step, b.low) for b in reversed(buckets)]
        ),
        dots=[
            Dot(*place(step, value), f"step {step}: {format_number(value)}")
            for step, value in values
        ]
        if is_few and is_whole
        else [],
        words=f"peak {format_number(max(value for _, value in values))}"
        if field == "learning_rate"
        else f"{format_number(values[0][1])} → {format_number(values[-1][1])}",
    )


def _polyline(places: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x} {y}" for x, y in places)


def _padded(values: Sequence[float], share: float) -> tuple[float, float]:
    """Return bounds around the values with some air, never of width 0."""
    low, high = min(values), max(values)
    if high - low < 1e-9 * max(abs(high), abs(low), 1e-3):
        air = abs(high) / 10 or 0.5
        return low - air, high + air
    return low - share * (high - low), high + share * (high - low)


def dot_plot(
    row: ScoreRow, labels: Mapping[ModelRole, str] = ROLE_LABELS, *, width: int
) -> DotPlot | None:
    """Place the models' values on one scale that shows differences without inflating noise.

    The scale spans all values and their 95 % intervals, and for shares at least 20 points.
    """
    if not row.values:
        return None
    reach = {role: row.intervals.get(role, (v, v)) for role, v in row.values.items()}
    low = min(*row.values.values(), *(interval[0] for interval in reach.values()))
    high = max(*row.values.values(), *(interval[1] for interval in reach.values()))
    least = 0.2 if row.is_share else 0.1 * max(abs(low), abs(high)) or 1.0
    middle, half = (low + high) / 2, max(high - low, least) * 0.6
    low, high = middle - half, middle + half
    if row.is_share:  # slide the window back into 0..1
        shift = max(-low, 0.0) - max(high - 1, 0.0)
        low, high = max(low + shift, 0.0), min(high + shift, 1.0)

    def x(value: float) -> float:
        inside = min(max((value - low) / (high - low), 0.0), 1.0)
        return round(8 + inside * (width - 16), 1)

    marks: list[Mark] = []
    for role in ROLES:
        if role not in row.values:
            continue
        interval = row.intervals.get(role)
        words = f" ({format_interval(row, interval)})" if interval else ""
        marks.append(
            Mark(
                role=role,
                x=x(row.values[role]),
                y=8 + 11 * len(marks),
                low=x(interval[0]) if interval else None,
                high=x(interval[1]) if interval else None,
                title=f"{labels[role]}: {format_score(row, row.values[role])}{words}",
            )
        )
    ticks = [
        Tick(x(value), f"{100 * value:.0f} %" if row.is_share else label)
        for value, label in labelled(nice_ticks(low, high, 3))
    ]
    return DotPlot(width=width, bottom=marks[-1].y + 8, marks=marks, ticks=ticks)
