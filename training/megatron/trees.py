"""Prefix sharing: many continuations of one text, every shared token computed once.

A tree is a prefix and the branches that continue it: a question and its answers, a prompt and the
responses to compare. Branches that begin alike share those tokens too. Trees are packed into one
sequence without padding. A token attends to the root (what all trees begin with, such as a few-shot
prompt; its keys and values are computed once and kept) and to its ancestors in its own tree.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
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
    """Where one tree lies in the packed sequence, and which of its tokens follows which."""

    start: int
    stop: int
    parents: tuple[int, ...]
    """[stop - start] place in the span of the token before; -1 where that is the root."""

    def visible(self) -> Tensor:
        """Return [tokens, tokens] bool, True where a token finds itself or an ancestor."""
        visible_QK = np.eye(len(self.parents), dtype=np.bool_)
        for place, parent in enumerate(self.parents):
            if parent >= 0:
                visible_QK[place] |= visible_QK[parent]
        return torch.from_numpy(visible_QK)


@dataclass(frozen=True)
class TreeBatch:
    """Trees packed one after another into T tokens; B branches in all, N scored tokens.

    Scored tokens that follow the same text are predicted by one distribution: the P distributions
    that are read are fewer than the scored tokens.
    """

    root: tuple[int, ...]
    """What every prefix begins with; it isn't among the T tokens."""
    tokens_T: Tensor
    """[T] int64."""
    positions_T: Tensor
    """[T] int64, position of a token counted from the start of the root."""
    spans: tuple[Span, ...]
    read_index_P: Tensor
    """[P] int64, ascending, where next-token distributions are read."""
    score_read_N: Tensor
    """[N] int64, ascending, which of the P distributions predicts each scored token."""
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

    def scores_of(self, reads: slice) -> slice:
        """Return which of the N scored tokens some of the P distributions predict."""
        bounds = torch.searchsorted(self.score_read_N, torch.tensor([reads.start, reads.stop]))
        return slice(*bounds.tolist())

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


def by_tree(trees: Sequence[Tree], values_B: Tensor) -> list[list[Any]]:
    """Return the values of packed branches, a number or a list each, as a list a tree."""
    values = iter(values_B.tolist())
    return [[next(values) for _ in tree.branches] for tree in trees]


def _num_fed(tree: Tree, root: Sequence[int], feed_last_token: bool) -> int:
    """Return the most tokens that a tree can have when packed."""
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
        self._parents: list[int] = []
        self._children: dict[tuple[int, int], int] = {}
        self._spans: list[Span] = []
        self._scores: list[tuple[int, int, int]] = []
        self._branch_last: list[int] = []

    def add(self, tree: Tree) -> None:
        start = len(self._tokens)
        self._parents = []
        self._children = {}
        at = start - 1
        for position in range(len(self._root), len(tree.prefix)):
            at = self._feed(tree.prefix[position], at, position)
        for branch in tree.branches:
            self._add_branch(branch, at, len(tree.prefix))
        parents = (parent - start if parent >= start else -1 for parent in self._parents)
        self._spans.append(Span(start, len(self._tokens), tuple(parents)))

    def _add_branch(self, branch: Branch, at: int, position: int) -> None:
        """Walk from the end of the prefix, feeding the tokens that no branch before fed there."""
        num_fed = len(branch.tokens) - (not self._feed_last_token)
        for step, (token, is_scored) in enumerate(
            zip(branch.tokens, branch.is_scored, strict=True)
        ):
            if is_scored:
                self._scores.append((at, token, len(self._branch_last)))
            if step < num_fed:
                at = self._feed(token, at, position + step)
        self._branch_last.append(at)

    def _feed(self, token: int, parent: int, position: int) -> int:
        """Return where the token lies that follows the parent; append it if it isn't there yet."""
        at = self._children.setdefault((parent, token), len(self._tokens))
        if at == len(self._tokens):
            self._tokens.append(token)
            self._positions.append(position)
            self._parents.append(parent)
        return at

    def batch(self) -> TreeBatch:
        scores_N3 = torch.tensor(sorted(self._scores), dtype=torch.int64).view(-1, 3)
        read_at_N, targets_N, score_branch_N = scores_N3.unbind(1)
        read_index_P, score_read_N = torch.unique(read_at_N, return_inverse=True)
        return TreeBatch(
            root=self._root,
            tokens_T=torch.tensor(self._tokens),
            positions_T=torch.tensor(self._positions),
            spans=tuple(self._spans),
            read_index_P=read_index_P,
            score_read_N=score_read_N,
            targets_N=targets_N.contiguous(),
            score_branch_N=score_branch_N.contiguous(),
            branch_last_B=torch.tensor(self._branch_last),
        )
