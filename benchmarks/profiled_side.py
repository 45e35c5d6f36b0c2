"""`python profiled_side.py RUN_FOLDER STEPS_PER_RUN`: `our_side`, the last step of it profiled.

What the step spent its time on is left in the run folder, in `PROFILE`.
"""

import functools
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from our_side import PacedFolder
from pacing import Pacer

PROFILE = "profile.json"

CATEGORIES = (
    "forward: matrix products",
    "forward: attention",
    "forward: LM head and loss",
    "forward: other",
    "backward: matrix products",
    "backward: accumulation",
    "backward: other",
    "optimizer",
    "data",
    "rest",
)
"""What a step consists of. The products of attention, head and loss are theirs in the forward pass,
and among the products in the backward pass; accumulation adds the gradients of weights up over
microbatches in fp32; layers that the backward pass computes again are its own; `rest` is outside of
all these, in Python and Megatron."""

_PRODUCTS = frozenset(
    f"aten::{name}" for name in ("mm", "addmm", "bmm", "baddbmm", "mkldnn_linear", "_scaled_mm")
)
_BACKWARD = "autograd::engine::evaluate_function"
_STEP, _MODEL, _DATA = "alignflow::step", "alignflow::model", "alignflow::data"
_HEAD, _ATTENTION = "alignflow::head", "alignflow::attention"
_OPTIMIZER = "alignflow::optimizer"


class Event(Protocol):
    """What is asked of an event of torch's profiler."""

    name: str
    thread: int
    cpu_parent: "Event | None"

    @property
    def self_cpu_time_total(self) -> float:
        """Microseconds in which it ran and no event inside it."""


class ProfiledFolder(PacedFolder):
    """Profiles the last step, between what the job logs of the one before it and of itself."""

    _profiler: Any = None
    _began = 0.0

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Log a row; profile from the last but one on."""
        if self._profiler is not None:
            seconds = time.perf_counter() - self._began
            self._profiler.stop()
            found = {"seconds": seconds, **seconds_spent(self._profiler.events(), seconds)}
            (self.path / PROFILE).write_text(json.dumps(found), encoding="utf-8")
        super().append_metrics(row)
        if row["step"] == row["num_steps"] - 1:
            self._start()

    def _start(self) -> None:
        from torch.profiler import ProfilerActivity, profile

        mark_functions()
        self._profiler = profile(activities=[ProfilerActivity.CPU])
        self._profiler.start()
        self._began = time.perf_counter()


def seconds_spent(events: Iterable[Event], seconds: float) -> dict[str, float]:
    """Return the seconds of each category in a step.

    Args:
        events: Of the profiler, from the step alone.
        seconds: What the step took by the clock; what no event tells of is `rest`.
    """
    events = list(events)
    threads = {event.thread for event in events if event.name == _STEP}
    spent = dict.fromkeys(CATEGORIES, 0.0)
    for event in events:
        # Threads that only help a call are inside its time.
        if event.thread in threads:
            spent[_category(event)] += event.self_cpu_time_total / 1e6
    spent["rest"] = seconds - sum(value for name, value in spent.items() if name != "rest")
    return spent


def _category(event: Event) -> str:
    names = [each.name for each in _with_parents(event)]
    nodes = [name for name in names if name.startswith(_BACKWARD)]
    if nodes:
        is_accumulated = any("AccumulateGrad" in node for node in nodes)
        other = "backward: accumulation" if is_accumulated else "backward: other"
        return "backward: matrix products" if event.name in _PRODUCTS else other
    if _OPTIMIZER in names:
        return "optimizer"
    if _DATA in names:
        return "data"
    if _HEAD in names:
        return "forward: LM head and loss"
    if _ATTENTION in names:
        return "forward: attention"
    if _MODEL in names:
        return "forward: matrix products" if event.name in _PRODUCTS else "forward: other"
    return "rest"


def _with_parents(event: Event | None) -> Iterator[Event]:
    while event is not None:
        yield event
        event = event.cpu_parent


def mark_functions() -> None:
    """Have what the step calls show in the profile by names of ours."""
    from alignflow.training.feed import Feed
    from alignflow.training.megatron.attention import PackedAttention
    from alignflow.training.megatron.model import PackedModel
    from alignflow.training.megatron.run import Run

    plain_step = Run.train_step

    @functools.wraps(plain_step)
    def train_step(self: Run, *args: Any, **kwargs: Any) -> dict[str, float]:
        self.optimizer.step = _marked(_OPTIMIZER, self.optimizer.step)
        return plain_step(self, *args, **kwargs)

    setattr(Run, "train_step", _marked(_STEP, train_step))  # noqa: B010 (a method, to mypy)
    for owner, method, name in (
        (Feed, "batches", _DATA),
        (PackedModel, "forward", _MODEL),
        (PackedModel, "log_probabilities", _HEAD),
        (PackedAttention, "forward", _ATTENTION),
    ):
        setattr(owner, method, _marked(name, getattr(owner, method)))


def _marked(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    from torch.profiler import record_function

    @functools.wraps(function)
    def marked(*args: Any, **kwargs: Any) -> Any:
        with record_function(name):
            return function(*args, **kwargs)

    return marked


if __name__ == "__main__":
    from alignflow.training.__main__ import train

    folder = ProfiledFolder(Path(sys.argv[1]), Pacer(int(sys.argv[2])))
    train(folder, folder.read_spec())
