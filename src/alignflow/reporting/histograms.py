"""Geometry of the page's histograms: counts in bins in, outlines out; the template draws them."""

from collections.abc import Mapping
from dataclasses import dataclass

from alignflow.reporting.charts import Tick, labelled, nice_ticks
from alignflow.reporting.model import ROLE_LABELS, ROLES, Distribution, ModelRole
from alignflow.reporting.text import format_number


@dataclass(frozen=True)
class Outline:
    """One model's histogram as an SVG path."""

    role: str
    label: str
    path: str
    words: str
    """How many items, and their mean."""


@dataclass(frozen=True)
class Histogram:
    """The models' values of one quantity; all positions in pixels from the top left."""

    title: str
    unit: str
    width: int
    height: int
    bottom: float
    x_ticks: list[Tick]
    zero: float | None
    """Where 0 lies, if it is within the values."""
    outlines: list[Outline]


def histogram(
    data: Distribution,
    labels: Mapping[ModelRole, str] = ROLE_LABELS,
    *,
    width: int,
    height: int,
) -> Histogram:
    """Lay out a distribution; each model's bins are shares of its own items."""
    left, right, top, bottom = 8.0, width - 8.0, 8.0, height - 22.0
    low, high = data.edges[0], data.edges[-1]
    tallest = max(max(counts) / sum(counts) for counts in data.counts.values())

    def x(value: float) -> float:
        return round(left + (value - low) / (high - low) * (right - left), 1)

    def outline(counts: list[int]) -> str:
        steps = [f"M{x(low)} {bottom}"]
        for start, end, count in zip(data.edges, data.edges[1:], counts, strict=False):
            y = round(bottom - count / sum(counts) / tallest * (bottom - top), 1)
            steps.append(f"L{x(start)} {y}L{x(end)} {y}")
        return "".join([*steps, f"L{x(high)} {bottom}"])

    return Histogram(
        title=data.title,
        unit=data.unit,
        width=width,
        height=height,
        bottom=bottom,
        x_ticks=[Tick(x(value), label) for value, label in labelled(nice_ticks(low, high, 4))],
        zero=x(0) if low < 0 < high else None,
        outlines=[
            Outline(
                role=role,
                label=data.label or labels[role],
                path=outline(data.counts[role]),
                words=f"mean {format_number(data.means[role])}",
            )
            for role in ROLES
            if role in data.counts
        ],
    )
