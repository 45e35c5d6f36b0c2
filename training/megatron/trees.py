"""Prefix sharing: many continuations of one text, the text computed once.

A tree is a prefix and the branches that continue it: a question and its answers, a prompt and the
responses to compare. Trees are packed into one sequence without padding. A token attends to the
root (what all trees begin with, such as a few-shot prompt; its keys and values are computed once
and kept), to the rest of its own prefix and to its own branch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Branch:
    """Tokens that follow a prefix, and which of them have their log-probability summed."""

    tokens: Sequence[int]
    is_scored: Sequence[bool]

    def __post_init__(self) -> None:
        """Refuse an empty branch."""
        if not self.tokens or len(self.tokens) != len(self.is_scored):
            raise ValueError(f"{len(self.tokens)} tokens with {len(self.is_scored)} flags")

    @classmethod
    def scored(cls, tokens: Sequence[int]) -> "Branch":
        """Return a branch whose every token counts."""
        return cls(tokens, [True] * len(tokens))


@dataclass(frozen=True)
class Tree:
    """A prefix of at least one token and the branches that each continue it on their own."""

    prefix: Sequence[int]
    branches: Sequence[Branch]

    def __post_init__(self) -> None:
        """Refuse a tree that asks nothing."""
        if not self.prefix or not self.branches:
            raise ValueError("a tree needs a prefix token and a branch")


@dataclass(frozen=True)
class Span:
    """Where one tree lies in the packed sequence, and how its tokens belong together."""

    start: int
    stop: int
    branch_t: Tensor
    """[stop - start] int64: 0 on the prefix, 1, 2, … on the branches."""


@dataclass(frozen=True)
class TreeBatch:
    """Trees packed one after another into T tokens; B branches in all, N scored tokens."""

    root: tuple[int, ...]
    """What every prefix begins with; it isn't among the T tokens."""
    tokens_T: Tensor
    """[T] int64."""
    positions_T: Tensor
    """[T] int64, position of a token counted from the start of the root."""
    spans: tuple[Span, ...]
    score_index_N: Tensor
    """[N] int64, where the model predicts each scored token."""
    targets_N: Tensor
    """[N] int64."""
    score_branch_N: Tensor
    """[N] int64, branch of each scored token."""
    branch_last_B: Tensor
    """[B] int64, where the last fed token of each branch lies."""

    @property
    def num_tokens(self) -> int:
        """Tokens that the model computes, the root left out."""
        return self.tokens_T.numel()

    def branch_sums(self, values_N: Tensor) -> Tensor:
        """Return the sum over the scored tokens of each branch, [B]."""
        return values_N.new_zeros(len(self.branch_last_B)).index_add_(
            0, self.score_branch_N.to(values_N.device), values_N
        )

    def branch_counts(self) -> Tensor:
        """Return the number of scored tokens of each branch, [B] int64."""
        return torch.bincount(self.score_branch_N, minlength=len(self.branch_last_B))


def common_root(trees: Sequence[Tree]) -> tuple[int, ...]:
    """Return what all prefixes begin with, less the last token of the shortest.

    The last token of a prefix predicts the first tokens of its branches, so it stays in the tree.
    """
    if len(trees) < 2:
        return ()
    # Of all sequences, the smallest and the largest in order differ the earliest.
    prefixes = [list(tree.prefix) for tree in trees]
    first, last = min(prefixes), max(prefixes)
    limit = min(map(len, prefixes)) - 1
    shared = 0
    while shared < limit and first[shared] == last[shared]:
        shared += 1
    return tuple(first[:shared])


def pack_trees(
    trees: Sequence[Tree],
    *,
    max_tokens: int,
    root: tuple[int, ...] = (),
    feed_last_token: bool = False,
) -> Iterator[tuple[list[Tree], TreeBatch]]:
    """Pack trees in order into sequences of at most so many tokens; yield both.

    Args:
        trees: What to pack.
        max_tokens: Most tokens of a sequence; a single larger tree forms its own.
        root: What every prefix begins with, left out of the sequences.
        feed_last_token: Compute the last token of each branch too. Its hidden state is what a
            reward head reads; a log-probability doesn't need it.
    """
    waiting: list[Tree] = []
    num_tokens = 0
    for tree in trees:
        size = _num_fed(tree, root, feed_last_token)
        if waiting and num_tokens + size > max_tokens:
            yield waiting, _pack(waiting, root, feed_last_token)
            waiting, num_tokens = [], 0
        waiting.append(tree)
        num_tokens += size
    if waiting:
        yield waiting, _pack(waiting, root, feed_last_token)


def by_tree(trees: Sequence[Tree], values_B: Tensor) -> list[list[float]]:
    """Return the values of packed branches as a list a tree."""
    values = iter(values_B.tolist())
    return [[next(values) for _ in tree.branches] for tree in trees]


def _num_fed(tree: Tree, root: Sequence[int], feed_last_token: bool) -> int:
    fed = sum(len(branch.tokens) - (not feed_last_token) for branch in tree.branches)
    return len(tree.prefix) - len(root) + fed


def _pack(trees: Sequence[Tree], root: tuple[int, ...], feed_last_token: bool) -> TreeBatch:
    packer = _Packer(root, feed_last_token)
    for tree in trees:
        packer.add(tree)
    return packer.batch()


class _Packer:
    """Lists that grow by one tree at a time."""

    def __init__(self, root: tuple[int, ...], feed_last_token: bool) -> None:
        self._root = root
        self._feed_last_token = feed_last_token
        self._tokens: list[int] = []
        self._positions: list[int] = []
        self._spans: list[Span] = []
        self._score_index: list[int] = []
        self._targets: list[int] = []
        self._score_branch: list[int] = []
        self._branch_last: list[int] = []

    def add(self, tree: Tree) -> None:
        start = len(self._tokens)
        self._tokens += tree.prefix[len(self._root) :]
        self._positions += range(len(self._root), len(tree.prefix))
        prefix_last = len(self._tokens) - 1
        owners = [0] * (len(self._tokens) - start)
        for owner, branch in enumerate(tree.branches, start=1):
            num_fed = self._add_branch(branch, prefix_last, len(tree.prefix))
            owners += [owner] * num_fed
        self._spans.append(Span(start, len(self._tokens), torch.tensor(owners)))

    def _add_branch(self, branch: Branch, prefix_last: int, position: int) -> int:
        """Append a branch; return how many of its tokens the model computes."""
        at = len(self._tokens)
        num_fed = len(branch.tokens) - (not self._feed_last_token)
        self._tokens += branch.tokens[:num_fed]
        self._positions += range(position, position + num_fed)
        # The end of the prefix predicts the first token, each token predicts its successor.
        predicted_at = [prefix_last, *range(at, at + len(branch.tokens) - 1)]
        scored = [n for n, is_scored in enumerate(branch.is_scored) if is_scored]
        self._score_index += [predicted_at[n] for n in scored]
        self._targets += [branch.tokens[n] for n in scored]
        self._score_branch += [len(self._branch_last)] * len(scored)
        self._branch_last.append(at + num_fed - 1 if num_fed else prefix_last)
        return num_fed

    def batch(self) -> TreeBatch:
        return TreeBatch(
            root=self._root,
            tokens_T=torch.tensor(self._tokens),
            positions_T=torch.tensor(self._positions),
            spans=tuple(self._spans),
            score_index_N=torch.tensor(self._score_index, dtype=torch.int64),
            targets_N=torch.tensor(self._targets, dtype=torch.int64),
            score_branch_N=torch.tensor(self._score_branch, dtype=torch.int64),
            branch_last_B=torch.tensor(self._branch_last),
        )
