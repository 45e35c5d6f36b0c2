"""The batches that this rank takes of a split."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from alignflow.training.batch import PackedBatch
from alignflow.training.packing import Items, split_into_microbatches, split_over_ranks
from alignflow.training.rows import TokenRows

if TYPE_CHECKING:  # importing megatron takes seconds
    from alignflow.training.megatron.run import Run

BatchT = TypeVar("BatchT", bound=PackedBatch)


@dataclass(frozen=True)
class Feed(Generic[BatchT]):
    """Turns the items of a global batch into this rank's microbatches."""

    rows: TokenRows
    make_batch: Callable[[TokenRows, Items], BatchT]
    max_tokens: int
    """Most tokens of a microbatch, those that rows share counted once."""
    rank: int
    """Data-parallel rank."""
    num_ranks: int

    @classmethod
    def of_run(
        cls,
        run: "Run",
        rows: TokenRows,
        make_batch: Callable[[TokenRows, Items], BatchT],
        *,
        max_tokens: int,
    ) -> "Feed[BatchT]":
        """Return the share of a run's rank; without shared prefixes where it takes none."""
        return cls(
            rows if run.shares_prefixes else rows.unshared(),
            make_batch,
            max_tokens=max_tokens,
            rank=run.data_parallel_rank,
            num_ranks=run.data_parallel_size,
        )

    def parts(self, items: Items) -> list[Items]:
        """Return the items of each microbatch of this rank; at least one, be it empty."""
        lengths = self.rows.packed_lengths
        mine = split_over_ranks(items, lengths, self.num_ranks)[self.rank]
        return split_into_microbatches(mine, lengths, self.max_tokens) or [mine]

    def batches(self, items: Items) -> list[BatchT]:
        """Return the microbatches of this rank."""
        return [self.make_batch(self.rows, part) for part in self.parts(items)]

    def num_tokens(self, items: Items) -> int:
        """Return the tokens of a global batch, those that rows share counted in each."""
        return int(self.rows.item_lengths[items].sum())
