"""Which rows are kept from training."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from alignflow.data_validation.drafts import USER, Draft
from alignflow.data_validation.text import hash_of, prompt_key


def group_of(draft: Draft, seed: int) -> int:
    """Return the group of a row, equal for all rows that must stay on one side of a split.

    It is a hash of the first user turn in its normal form: rows of one prompt share it, and so do
    all branches of a conversation, whose later turns would otherwise give earlier ones away.
    """
    first = next(turn for turn in draft.messages if turn.role == USER)
    return hash_of(str(seed), prompt_key(first.content or ""))


class GroupLinks:
    """Which groups have to stay on one side together: linked ones, and all that are linked to them.

    Takes memory for groups that are linked, and for no others.
    """

    def __init__(self) -> None:
        self._linked_to: dict[int, int] = {}

    def join(self, one: int, other: int) -> None:
        """Link two groups."""
        roots = self.root(one), self.root(other)
        if roots[0] != roots[1]:
            self._linked_to[min(roots)] = max(roots)

    def roots(self, groups_R: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Return `root` of the group of each row."""
        is_linked_R = np.isin(groups_R, np.array(list(self._linked_to), dtype=np.uint64))
        roots_R = groups_R.copy()
        roots_R[is_linked_R] = [self.root(int(group)) for group in groups_R[is_linked_R]]
        return roots_R

    def root(self, group: int) -> int:
        """Return the one group that stands for all that are linked to this one."""
        root = group
        while root in self._linked_to:
            root = self._linked_to[root]
        while group != root:  # next time the way is short
            self._linked_to[group], group = root, self._linked_to[group]
        return root


def tree_group(tree: str, seed: int) -> int:
    """Return the group of a conversation tree by its name."""
    return hash_of(str(seed), "tree", tree)


def held_out_groups(
    groups: Sequence[int] | NDArray[np.uint64], share: float, max_rows: int | None
) -> set[int]:
    """Return the groups to hold out, in the order of their hashes until the share is reached.

    Args:
        groups: The group of each row.
        share: Share of the rows, from 0 to below 1. Where it is above 0 and there are two groups
            or more, at least one is held out, even if it is larger than the share.
        max_rows: Most rows to hold out, but for such a single group.
    """
    names, sizes = np.unique(np.asarray(groups, dtype=np.uint64), return_counts=True)
    if share == 0 or len(names) < 2:
        return set()
    wanted = round(share * len(groups))
    if max_rows is not None:
        wanted = min(wanted, max_rows)
    held_out: set[int] = set()
    num_rows = 0
    for name, size in zip(names, sizes, strict=True):
        if num_rows == wanted:
            break
        if num_rows + size <= wanted:
            held_out.add(int(name))
            num_rows += int(size)
    return held_out or {int(names[np.argmin(sizes)])}
