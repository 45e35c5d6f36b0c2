from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from alignflow.training.feed import Feed
from alignflow.training.packing import (
    DataOrder,
    pack,
    split_into_microbatches,
    split_over_ranks,
)
from alignflow.training.pairs import pack_pairs, pack_referenced_pairs
from alignflow.training.rows import RowSummary, TokenRows


def token_rows(
    *rows: tuple[Sequence[int], Sequence[int]],
    rows_per_item: int = 1,
    shared: Sequence[int] | None = None,
) -> TokenRows:
    """Rows of (tokens, learnt flags)."""
    lengths = [len(tokens) for tokens, _ in rows]
    return TokenRows(
        tokens=np.concatenate([np.array(tokens, np.int32) for tokens, _ in rows]),
        is_learnt=np.concatenate([np.array(flags, np.bool_) for _, flags in rows]),
        starts_R1=np.cumsum([0, *lengths], dtype=np.int64),
        shared_I=np.array(shared or [0] * (len(rows) // rows_per_item), dtype=np.int64),
        labels_IL=np.arange(len(rows) // rows_per_item, dtype=np.float32)[:, None],
        rows_per_item=rows_per_item,
        summary=RowSummary("digest", 0, {}, ()),
    )


def random_rows(num_rows: int, rows_per_item: int = 1) -> TokenRows:
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 30, num_rows)
    return token_rows(
        *((rng.integers(1, 99, n), [0] + [1] * (n - 1)) for n in lengths),
        rows_per_item=rows_per_item,
    )


def indices(*values: int) -> NDArray[np.int64]:
    return np.array(values, dtype=np.int64)


class TestDataOrder:
    def test_every_epoch_takes_each_item_once_in_an_order_of_its_own(self) -> None:
        order = DataOrder(num_items=10, global_batch_size=4, num_epochs=2, seed=1)
        assert (order.steps_per_epoch, order.num_steps) == (3, 6)
        epochs = [np.concatenate([order.items(3 * e + s) for s in range(3)]) for e in (0, 1)]
        for epoch in epochs:
            assert sorted(epoch) == list(range(10))
        assert epochs[0].tolist() != epochs[1].tolist()

    def test_what_is_left_of_an_epoch_makes_a_smaller_batch(self) -> None:
        order = DataOrder(num_items=10, global_batch_size=4, num_epochs=2, seed=1)
        assert [len(order.items(step)) for step in range(6)] == [4, 4, 2, 4, 4, 2]

    def test_fewer_items_than_a_batch_are_all_taken(self) -> None:
        order = DataOrder(num_items=3, global_batch_size=8, num_epochs=2, seed=1)
        assert order.num_steps == 2
        assert sorted(order.items(1)) == [0, 1, 2]

    def test_the_seed_gives_the_order(self) -> None:
        orders = [DataOrder(50, 50, 1, seed).items(0).tolist() for seed in (1, 1, 2)]
        assert orders[0] == orders[1]
        assert orders[0] != orders[2]

    @pytest.mark.parametrize(("max_steps", "expected"), [(None, 6), (4, 4), (9, 6)])
    def test_max_steps_ends_the_run_early(self, max_steps: int | None, expected: int) -> None:
        assert DataOrder(10, 4, 2, seed=1, max_steps=max_steps).num_steps == expected


class TestSplit:
    def test_ranks_get_about_the_same_number_of_tokens(self) -> None:
        lengths = np.random.default_rng(0).integers(10, 200, 64)
        items = np.arange(64)
        parts = split_over_ranks(items, lengths, 4)
        assert sorted(np.concatenate(parts)) == items.tolist()
        loads = [lengths[part].sum() for part in parts]
        assert max(loads) - min(loads) < lengths.max()

    def test_longest_first_to_the_rank_with_the_fewest_tokens(self) -> None:
        # 9 to rank 0; 7 to rank 1; 6 to rank 1 (7 < 9); 3 to rank 0 (9 < 13).
        parts = split_over_ranks(indices(0, 1, 2, 3), indices(3, 9, 6, 7), 2)
        assert [part.tolist() for part in parts] == [[1, 0], [3, 2]]

    def test_a_rank_may_go_without(self) -> None:
        parts = split_over_ranks(indices(5), indices(0, 0, 0, 0, 0, 7), 2)
        assert [part.tolist() for part in parts] == [[5], []]

    def test_microbatches_are_filled_first_fit(self) -> None:
        # Longest first: 12 is too long and has its own, 6 + 4 fill one, 5 + 3 the next.
        parts = split_into_microbatches(np.arange(5), indices(5, 12, 4, 6, 3), 10)
        assert [part.tolist() for part in parts] == [[1], [3, 2], [0, 4]]

    def test_no_microbatch_is_larger_than_allowed(self) -> None:
        lengths = np.random.default_rng(1).integers(1, 100, 200)
        parts = split_into_microbatches(np.arange(200), lengths, 100)
        assert sorted(np.concatenate(parts)) == list(range(200))
        assert max(lengths[part].sum() for part in parts) <= 100


class TestPack:
    def test_scored_positions_predict_the_learnt_tokens(self) -> None:
        rows = token_rows(([11, 12, 13], [0, 1, 1]), ([21, 22], [0, 1]), ([31, 32, 33], [0, 0, 1]))
        batch = pack(rows, indices(2, 0))
        # Row 2 then row 0: 31 32 33 | 11 12 13, of which 33, 12 and 13 are learnt.
        assert batch.tokens_T.tolist() == [31, 32, 33, 11, 12, 13]
        assert batch.positions_T.tolist() == [0, 1, 2, 0, 1, 2]
        assert batch.row_starts_R1.tolist() == [0, 3, 6]
        assert batch.score_index_N.tolist() == [1, 3, 4]
        assert batch.targets_N.tolist() == [33, 12, 13]
        assert batch.score_row_N.tolist() == [0, 1, 1]
        assert batch.row_last_R.tolist() == [2, 5]
        assert (batch.num_rows, batch.num_tokens) == (2, 6)
        assert batch.row_starts_R1.dtype == torch.int32
        for name in ("tokens_T", "positions_T", "score_index_N", "targets_N", "row_last_R"):
            assert getattr(batch, name).dtype == torch.int64

    def test_a_batch_of_nothing_is_one_token_that_scores_nothing(self) -> None:
        batch = pack(random_rows(3), indices())
        assert (batch.num_rows, batch.num_tokens, batch.targets_N.numel()) == (1, 1, 0)

    def test_a_pair_is_two_rows_side_by_side(self) -> None:
        rows = random_rows(6, rows_per_item=2)
        batch = pack_pairs(rows, indices(2, 0))
        assert batch.chosen_rows_B.tolist() == [0, 2]
        assert batch.rejected_rows_B.tolist() == [1, 3]
        assert batch.tokens_T[batch.row_starts_R1[1] :][:2].tolist() == list(
            rows.row(5).tokens_T[:2]
        )
        assert pack_pairs(rows, indices()).chosen_rows_B.numel() == 0

    def test_reference_values_follow_their_pairs(self) -> None:
        rows = random_rows(6, rows_per_item=2)
        batch = pack_referenced_pairs(rows, indices(2, 0), -torch.arange(6.0))
        assert batch.reference_chosen_B.tolist() == [-4, 0]
        assert batch.reference_rejected_B.tolist() == [-5, -1]
        assert type(batch.to("cpu")) is type(batch)


class TestFeed:
    @pytest.mark.parametrize("num_ranks", [1, 2, 3])
    def test_the_ranks_together_score_the_same_tokens_whatever_the_layout(
        self, num_ranks: int
    ) -> None:
        rows = random_rows(24, rows_per_item=2)
        items = DataOrder(12, 5, 1, seed=3).items(0)
        scored = []
        for rank in range(num_ranks):
            feed = Feed(rows, pack_pairs, max_tokens=64, rank=rank, num_ranks=num_ranks)
            for batch in feed.batches(items):
                assert batch.num_tokens <= 64
                scored += batch.targets_N.tolist()
        expected = pack(rows, items).targets_N.tolist()
        assert sorted(scored) == sorted(expected)

    def test_a_rank_without_items_still_has_a_batch(self) -> None:
        feed = Feed(random_rows(4), pack, max_tokens=64, rank=1, num_ranks=2)
        (batch,) = feed.batches(indices(3))
        assert batch.targets_N.numel() == 0

    def test_rows_of_a_pair_share_what_they_begin_with(self) -> None:
        rows = token_rows(
            ([1, 2, 3, 4], [0, 0, 1, 1]), ([1, 2, 5], [0, 0, 1]), rows_per_item=2, shared=[2]
        )
        batch = pack(rows, indices(0))
        # 1 2 3 4 | 5: the second row is 1 2 5, and 2 predicts both 3 and 5.
        assert batch.tokens_T.tolist() == [1, 2, 3, 4, 5]
        assert batch.positions_T.tolist() == [0, 1, 2, 3, 2]
        assert batch.row_tokens_S.tolist() == [0, 1, 2, 3, 0, 1, 4]
        assert batch.row_starts_R1.tolist() == [0, 4, 7]
        assert batch.score_index_N.tolist() == [1, 2, 1]
        assert batch.targets_N.tolist() == [3, 4, 5]
        assert batch.score_row_N.tolist() == [0, 0, 1]
        assert batch.row_last_R.tolist() == [3, 4]
        assert rows.packed_lengths.tolist() == [5]
        assert rows.item_lengths.tolist() == [7]
        assert pack(rows.unshared(), indices(0)).num_tokens == 7

    def test_a_row_that_begins_like_all_of_the_other_is_no_token_of_its_own(self) -> None:
        rows = token_rows(([1, 2], [0, 1]), ([1, 2, 3], [0, 1, 1]), rows_per_item=2, shared=[2])
        batch = pack(rows, indices(0))
        assert batch.tokens_T.tolist() == [1, 2, 3]
        assert batch.row_last_R.tolist() == [1, 2]
        assert batch.targets_N.tolist() == [2, 2, 3]
