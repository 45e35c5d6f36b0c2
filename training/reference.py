"""What the reference model gives to the answers: computed once, before training, and kept.

The reference is the policy before its first update, so no second model is held in memory. Its
log-probabilities are kept in a file of the run folder: a resumed job, whose checkpoint holds a
trained policy, reads what its first attempt computed.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from alignflow.jobs.run_folder import RunFolder
from alignflow.training.batch import PackedBatch
from alignflow.training.collectives import any_rank, rank, wait_for_all
from alignflow.training.feed import Feed
from alignflow.training.forward import Forward, row_values
from alignflow.training.losses import row_logps
from alignflow.training.packing import Items

if TYPE_CHECKING:  # importing megatron takes seconds
    from alignflow.training.megatron.run import Run

_FILE = "reference.safetensors"


@dataclass(frozen=True)
class ReferencePass:
    """The rows of a split that training or validation will ask for."""

    feed: Feed[Any]
    global_batches: Sequence[Items]
    """As the policy will see them: the same microbatches give the same rounding, so that the
    first loss of DPO is exactly ln 2."""


def answer_logps(logps_N: Tensor, batch: PackedBatch) -> Tensor:
    """Return the log-probability of each row's answer, [R] float32, in nats."""
    return row_logps(logps_N, batch.score_row_N, batch.num_rows)


def reference_logps(
    run: "Run", folder: RunFolder, passes: Mapping[str, ReferencePass], *, identity: str
) -> dict[str, Tensor]:
    """Return the reference's log-probability of each answer, by split.

    Args:
        run: The policy before its first update, which is the reference.
        folder: Keeps them between attempts, and hears of the progress.
        passes: What to compute, by split.
        identity: Of data and config; values of another one are computed anew.

    Returns:
        [rows of the split] float32; minus infinity for rows of no global batch.
    """
    return kept_tensors(
        folder.path / _FILE,
        lambda: pass_logps(run, folder, passes, phase="reference"),
        identity=identity,
    )


def kept_tensors(
    path: Path, compute: Callable[[], dict[str, Tensor]], *, identity: str
) -> dict[str, Tensor]:
    """Return the tensors of a file, computed and written first where it doesn't hold them.

    Args:
        path: The file.
        compute: Returns them, the same on every rank; called by all ranks or by none.
        identity: Of all that determines them; those of another one count as none.
    """
    kept = _read(path, identity)
    # Ranks on several machines may not see the file at the same time: all compute, or none.
    is_missing = any_rank(kept is None)
    if kept is not None and not is_missing:
        return kept
    computed = compute()
    if rank() == 0:
        partial = path.with_suffix(".partial")
        save_file(computed, partial, metadata={"identity": identity})
        os.replace(partial, path)
    wait_for_all()
    return computed


def pass_logps(
    model: Forward, folder: RunFolder, passes: Mapping[str, ReferencePass], *, phase: str
) -> dict[str, Tensor]:
    """Return a model's log-probability of each answer, by split, as `reference_logps` does.

    Args:
        model: The model.
        folder: Hears of the progress.
        passes: What to compute, by split.
        phase: Name of the work in the progress.
    """
    num_batches = sum(len(each.global_batches) for each in passes.values())
    numbers = count(1)

    def announced(global_batches: Sequence[Items]) -> Iterator[Items]:
        for items in global_batches:
            yield items
            if rank() == 0:
                line = {"phase": phase, "step": next(numbers), "num_steps": num_batches}
                folder.append_metrics({**line, "time": time.time()})

    return {
        name: row_values(model, each.feed, announced(each.global_batches), answer_logps)
        for name, each in passes.items()
    }


def _read(path: Path, identity: str) -> dict[str, Tensor] | None:
    if not path.is_file():
        return None
    with safe_open(path, framework="pt") as file:
        if (file.metadata() or {}).get("identity") != identity:
            return None
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
