"""Items that the ranks of a job judge together, each of them once, however often the job is lost.

A rank writes what it finds after every pass of the model. The next attempt, which may have another
number of ranks, goes on with the items that nobody has judged.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist

from alignflow.evaluation.progress import Progress

ItemT = TypeVar("ItemT")

Passes = Iterator[tuple[Sequence[Any], int]]
"""What the model finds for the next items, each as JSON has it, and the tokens that this took."""


class SharedWork:
    """The items of a job's parts, divided among its ranks."""

    def __init__(self, folder: Path, progress: Progress) -> None:
        """Take the folder that keeps what has been found; all ranks see the same one."""
        self._folder = folder
        self._progress = progress
        self._rank, self._num_ranks = dist.get_rank(), dist.get_world_size()

    def collect(
        self,
        part: str,
        items: Sequence[ItemT],
        judge: Callable[[list[ItemT]], Passes],
        *,
        are_new: bool = True,
    ) -> list[Any]:
        """Return what the model finds for each item; called by all ranks alike.

        Args:
            part: Name of the part, which is counted anew.
            items: All of its items. What was found for others under this name is not used.
            judge: From some of them, in order, to what is found, pass by pass.
            are_new: Whether they count as items of the job; else they are those of the part before.
        """
        if are_new:
            self._progress.begin(part, len(items))
        of = hashlib.sha256(repr(items).encode()).hexdigest()
        known = self._same_for_all(self._read(part, of))
        self._progress.advance(len(known) * are_new, 0)
        numbers = [number for number in range(len(items)) if number not in known]
        mine = numbers[self._rank :: self._num_ranks]
        passes = judge([items[number] for number in mine])
        found = self._judge(part, of, mine, passes, are_new=are_new)
        shares: list[dict[int, Any]] = [{}] * self._num_ranks
        dist.all_gather_object(shares, found)
        self._progress.advance((len(numbers) - len(mine)) * are_new, 0)
        for share in shares:
            known |= share
        return [known[number] for number in range(len(items))]

    def _judge(
        self, part: str, of: str, numbers: Sequence[int], passes: Passes, *, are_new: bool
    ) -> dict[int, Any]:
        """Keep what is found on disk, pass by pass, and return it by the number of the item."""
        found: dict[int, Any] = {}
        left = iter(numbers)
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / f"{part}-{self._rank}.jsonl").open("a", encoding="utf-8") as file:
            file.write("\n")  # an attempt may have been killed in the middle of a line
            for answers, num_tokens in passes:
                for number, answer in zip(islice(left, len(answers)), answers, strict=True):
                    found[number] = answer
                    row = {"of": of, "item": number, "answer": answer}
                    file.write(json.dumps(row) + "\n")
                file.flush()
                self._progress.advance(len(answers) * are_new, num_tokens)
        return found

    def _read(self, part: str, of: str) -> dict[int, Any]:
        """Return what the attempts before found for these items."""
        found = {}
        for path in self._folder.glob(f"{part}-[0-9]*.jsonl"):
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    row = json.loads(line)
                except ValueError:  # half a line, or none
                    continue
                if row["of"] == of:
                    found[row["item"]] = row["answer"]
        return found

    def _same_for_all(self, found: dict[int, Any]) -> dict[int, Any]:
        """Return what the main rank has read: the others may be late, and read what is new."""
        shared = [found]
        dist.broadcast_object_list(shared, src=0)
        return shared[0]
