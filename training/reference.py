"""What the reference model gives to the answers: computed once, before training, and kept.

A resumed job has a trained policy in its checkpoint, so the reference's log-probabilities must
come from the file that the first attempt wrote.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from alignflow.training.batch import PackedBatch
from alignflow.training.collectives import any_rank, wait_for_all
from alignflow.training.feed import Feed
from alignflow.training.forward import row_values
from alignflow.training.losses import row_logps
from alignflow.training.packing import Items

if TYPE_CHECKING:  # importing megatron takes seconds
    from alignflow.training.megatron.run import Run


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
    run: "Run", path: Path, passes: Mapping[str, ReferencePass], *, identity: str
) -> dict[str, Tensor]:
    """Return the reference's log-probability of each answer, by split.

    Args:
        run: The policy before its first update, which is the reference.
        path: Where they are kept between attempts.
        passes: What to compute, by split.
        identity: Of data and config; a file of another one is made anew.

    Returns:
        [rows of the split] float32; minus infinity for rows of no global batch.
    """
    kept = _read(path, identity)
    if any_rank(kept is None):
        kept = {
            name: row_values(run, each.feed, each.global_batches, answer_logps)
            for name, each in passes.items()
        }
        if run.is_main:
            partial = path.with_suffix(".partial")
            save_file(kept, partial, metadata={"identity": identity})
            os.replace(partial, path)
        wait_for_all()
    assert kept is not None
    return kept


def _read(path: Path, identity: str) -> dict[str, Tensor] | None:
    if not path.is_file():
        return None
    with safe_open(path, framework="pt") as file:
        if (file.metadata() or {}).get("identity") != identity:
            return None
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
