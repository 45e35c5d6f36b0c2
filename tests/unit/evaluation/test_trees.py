"""How trees lie in a packed sequence, worked out by hand."""

import pytest
import torch

from alignflow.training.megatron.trees import Branch, Tree, TreeBatch, common_root, pack_trees

# Answers that begin alike share 20; 21 is fed once for both that go on after it.
TREE = Tree(
    [10, 11, 12],
    [
        Branch.scored([20, 21, 22]),
        Branch.scored([20, 23]),
        Branch([20, 21, 24], [False, False, True]),
    ],
)


def pack_one(tree: Tree, root: tuple[int, ...] = (), *, feed_last_token: bool = False) -> TreeBatch:
    ((_, batch),) = pack_trees([tree], max_tokens=100, root=root, feed_last_token=feed_last_token)
    return batch


def test_tokens_that_branches_share_are_fed_once() -> None:
    batch = pack_one(TREE)
    assert batch.tokens_T.tolist() == [10, 11, 12, 20, 21]
    assert batch.positions_T.tolist() == [0, 1, 2, 3, 4]
    # 20 is predicted after 12 for two branches, 21 and 23 after 20, 22 and 24 after 21.
    assert batch.read_index_P.tolist() == [2, 3, 4]
    assert list(
        zip(
            batch.score_read_N.tolist(),
            batch.targets_N.tolist(),
            batch.score_branch_N.tolist(),
            strict=True,
        )
    ) == [(0, 20, 0), (0, 20, 1), (1, 21, 0), (1, 23, 1), (2, 22, 0), (2, 24, 2)]
    assert batch.branch_counts().tolist() == [3, 2, 1]
    assert batch.branch_sums(torch.tensor([1.0, 2, 4, 8, 16, 32])).tolist() == [21, 10, 32]


def test_last_tokens_are_fed_for_a_reward_head() -> None:
    batch = pack_one(TREE, feed_last_token=True)
    assert batch.tokens_T.tolist() == [10, 11, 12, 20, 21, 22, 23, 24]
    assert batch.positions_T.tolist() == [0, 1, 2, 3, 4, 5, 4, 5]
    assert batch.tokens_T[batch.branch_last_B].tolist() == [22, 23, 24]
    (span,) = batch.spans
    # 23 follows 20, 24 follows 21: neither sees the branches beside it.
    visible = span.visible()
    assert visible[6].nonzero()[:, 0].tolist() == [0, 1, 2, 3, 6]
    assert visible[7].nonzero()[:, 0].tolist() == [0, 1, 2, 3, 4, 7]


def test_root_is_left_out_but_counts_for_positions() -> None:
    batch = pack_one(TREE, root=(10, 11))
    assert batch.tokens_T.tolist() == [12, 20, 21]
    assert batch.positions_T.tolist() == [2, 3, 4]
    assert batch.spans[0].parents == (-1, 0, 1)


def test_scores_of_a_slice_of_distributions() -> None:
    batch = pack_one(TREE)
    assert [batch.scores_of(slice(n, n + 1)) for n in range(3)] == [
        slice(0, 2),
        slice(2, 4),
        slice(4, 6),
    ]


def test_root_leaves_every_prefix_its_last_token() -> None:
    def tree(*prefix: int) -> Tree:
        return Tree(prefix, [Branch.scored([1])])

    assert common_root([tree(1, 2, 3, 4), tree(1, 2, 3, 5), tree(1, 2, 3, 4, 9)]) == (1, 2, 3)
    assert common_root([tree(1, 2, 3), tree(1, 2, 3), tree(1, 2, 3, 4)]) == (1, 2)
    assert common_root([tree(1), tree(2)]) == ()
    assert common_root([tree(1, 2, 3)]) == ()


@pytest.mark.parametrize(
    ("max_tokens", "sizes"), [(100, [3]), (10, [2, 1]), (9, [1, 1, 1]), (1, [1, 1, 1])]
)
def test_packing_keeps_the_order_and_the_bound(max_tokens: int, sizes: list[int]) -> None:
    trees = [Tree([n, 1, 2], [Branch.scored([3, 4, 5])]) for n in range(3)]
    packed = list(pack_trees(trees, max_tokens=max_tokens))
    assert [len(part) for part, _ in packed] == sizes
    assert [tree for part, _ in packed for tree in part] == trees
    assert all(batch.num_tokens <= max(max_tokens, 5) for _, batch in packed)


def test_what_asks_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="0 tokens"):
        Branch.scored([])
    with pytest.raises(ValueError, match="a prefix token and a branch"):
        Tree([], [Branch.scored([1])])
    with pytest.raises(ValueError, match="a prefix token and a branch"):
        Tree([1], [])
