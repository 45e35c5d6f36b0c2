"""Where the time of a step went, from the events of a profile."""

from dataclasses import dataclass

import pytest
from profiled_side import CATEGORIES, Event, seconds_spent


@dataclass
class Ran:
    """An event of its own time, inside others."""

    name: str
    self_cpu_time_total: float
    """Microseconds."""
    cpu_parent: Event | None = None
    thread: int = 1


def test_each_event_counts_once_where_its_outermost_part_is() -> None:
    step = Ran("alignflow::step", 1e5)
    model = Ran("alignflow::model", 2e5, step)
    linear = Ran("aten::linear", 3e5, model)
    attention = Ran("alignflow::attention", 4e5, model)
    head = Ran("alignflow::head", 5e5, model)
    node = Ran("autograd::engine::evaluate_function: MmBackward0", 6e5, step)
    gradient = Ran("autograd::engine::evaluate_function: torch::autograd::AccumulateGrad", 1e5)
    optimizer = Ran("alignflow::optimizer", 7e5, step)
    events = [
        *(step, model, linear, attention, head, node, optimizer),
        *(gradient, Ran("aten::add_", 1e5, gradient), Ran("alignflow::data", 8e5)),
        *(Ran("aten::mm", 1e6, parent) for parent in (linear, attention, head, node, optimizer)),
        # What the backward pass computes again is its own.
        Ran("aten::mm", 1e6, Ran("alignflow::model", 0, node)),
        # A thread that helps runs inside the time of a call.
        Ran("aten::mm", 5e6, thread=2),
    ]
    assert seconds_spent(events, 10.0) == pytest.approx(
        {
            "forward: matrix products": 1.0,
            "forward: attention": 1.4,
            "forward: LM head and loss": 1.5,
            "forward: other": 0.5,
            "backward: matrix products": 2.0,
            "backward: accumulation": 0.2,
            "backward: other": 0.6,
            "optimizer": 1.7,
            "data": 0.8,
            "rest": 0.3,
        }
    )


def test_all_is_rest_where_nothing_is_known() -> None:
    spent = seconds_spent([], 2.0)
    assert spent == {name: 2.0 * (name == "rest") for name in CATEGORIES}
