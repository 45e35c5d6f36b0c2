"""Passes without gradient over many rows: held-out means, and one value a row."""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

import torch
from torch import Tensor

from alignflow.jobs.worker import JobStoppedError, stop_requested
from alignflow.training.batch import PackedBatch
from alignflow.training.collectives import any_rank, max_over_ranks, sum_over_ranks
from alignflow.training.feed import BatchT, Feed
from alignflow.training.losses import SummedLoss
from alignflow.training.packing import Items

if TYPE_CHECKING:  # importing megatron takes seconds
    from alignflow.training.megatron.run import Run


T = TypeVar("T")


class Forward(Protocol):
    """A model in training, or one that is only asked."""

    def forward(self, microbatches: Sequence[PackedBatch]) -> list[Tensor]:
        """Return its output for each microbatch, without gradient."""
        ...


def stop_if_asked() -> None:
    """Leave the work on every rank once any rank was told to stop.

    Raises:
        JobStoppedError: The job was told to stop.
    """
    if any_rank(stop_requested()):
        raise JobStoppedError("The job was told to stop.")


def leaving_together(work: Callable[[], T]) -> T:
    """Return what this rank's share of some work gives, once every rank has done its own.

    The work asks `raise_if_stop_requested` now and then. A rank that leaves it so meets the others
    here, whether they have left theirs or finished it, and all go the same way.

    Raises:
        JobStoppedError: The job was told to stop.
    """
    try:
        done = work()
    except JobStoppedError:
        stop_if_asked()
        raise
    stop_if_asked()
    return done


def mean_loss(
    run: "Run",
    feed: Feed[BatchT],
    global_batches: Sequence[Items],
    compute_loss: Callable[[Tensor, BatchT], SummedLoss],
    *,
    before_batch: Callable[[Items], None] = lambda items: None,
) -> dict[str, float]:
    """Return `loss` and the metrics of the items, as means over all of their units.

    Args:
        run: The model.
        feed: The split.
        global_batches: Items, so many at a time as all ranks are given at once; without any there
            are no metrics.
        compute_loss: The loss, as in training.
        before_batch: Gets the items of each global batch just before they are computed.
    """
    sums: dict[str, Tensor] = {}
    for items in global_batches:
        stop_if_asked()
        before_batch(items)
        batches = feed.batches(items)
        for output, batch in zip(run.forward(batches), batches, strict=True):
            loss = compute_loss(output, batch.to(output.device))
            for name, value in {"units": loss.units, "loss": loss.total, **loss.metrics}.items():
                sums[name] = sums.get(name, 0) + value.double()
    if not sums:
        return {}
    total = dict(zip(sums, sum_over_ranks(torch.stack(list(sums.values()))).tolist(), strict=True))
    units = total.pop("units")
    return {name: value / units for name, value in total.items()}


def row_values(
    model: Forward,
    feed: Feed[BatchT],
    global_batches: Iterable[Items],
    values_of: Callable[[Tensor, PackedBatch], Tensor],
    *,
    width: int | None = None,
) -> Tensor:
    """Return a finite number for each row of the split, or several; the same on every rank.

    Args:
        model: The model.
        feed: The split.
        global_batches: Items to visit, so many at a time as all ranks are given at once.
        values_of: From the model's output and the batch to its rows' values, [R] or [R, width].
        width: Numbers of a row; None is a single one.

    Returns:
        [rows of the split] or [rows of the split, width] float32 on the CPU; minus infinity where a
        row wasn't visited.
    """
    num_rows = feed.rows.num_rows
    values = torch.full((num_rows,) if width is None else (num_rows, width), -torch.inf)
    for items in global_batches:
        stop_if_asked()
        parts = feed.parts(items)
        batches = [feed.make_batch(feed.rows, part) for part in parts]
        for part, output, batch in zip(parts, model.forward(batches), batches, strict=True):
            rows = torch.from_numpy(feed.rows.rows_of(part))
            values[rows] = values_of(output, batch.to(output.device))[: len(rows)].float().cpu()
    return max_over_ranks(values)
