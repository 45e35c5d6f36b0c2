"""Which rows are kept from training."""

from collections.abc import Sequence

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


def held_out_groups(groups: Sequence[int], share: float, max_rows: int | None) -> set[int]:
    """Return the groups to hold out, in the order of their hashes until the share is reached.

    Args:
        groups: The group of each row.
        share: Share of the rows, from 0 to below 1. Where it is above 0 and there are two groups
            or more, at least one is held out, even if it is larger than the share.
        max_rows: Most rows to hold out, but for such a single group.
    """
    sizes: dict[int, int] = {}
    for group in groups:
        sizes[group] = sizes.get(group, 0) + 1
    if share == 0 or len(sizes) < 2:
        return set()
    wanted = round(share * len(groups))
    if max_rows is not None:
        wanted = min(wanted, max_rows)
    held_out: set[int] = set()
    num_rows = 0
    for group in sorted(sizes):
        if num_rows + sizes[group] <= wanted:
            held_out.add(group)
            num_rows += sizes[group]
    return held_out or {min(sizes, key=lambda group: (sizes[group], group))}
