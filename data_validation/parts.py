"""Parts of sources judged wherever an executor runs them, such as on a cluster.

What is compared stays here: a part comes back as what is known of each row by itself, and is handed
on in the order of the sources. So where the rows are judged changes nothing in what is decided.
"""

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import Protocol

from alignflow.closing import Closing
from alignflow.data_validation.blocks import Block
from alignflow.data_validation.judging import BlockJudge, JudgedBlock

PART_BLOCKS = 8
"""Blocks of a part: so many that sending it takes little of the time that judging it does."""


class PendingPart(Protocol):
    """A part that is being judged somewhere."""

    def result(self) -> list[JudgedBlock]:
        """Wait for what is known of its blocks, in their order.

        Raises:
            WorkerError: It could not be judged where it was sent.
        """


class PartExecutor(Protocol):
    """Judges parts somewhere; several threads may submit to it."""

    @property
    def parts_ahead(self) -> int:
        """How many parts of one set may be on their way or wait to be compared."""

    def submit(self, judge: BlockJudge, blocks: Sequence[Block]) -> PendingPart:
        """Begin to judge the blocks of a part, which `judge_part` does."""


def judge_part(judge: BlockJudge, blocks: Sequence[Block]) -> list[JudgedBlock]:
    """Return what is known of the rows of each block, in order."""
    return [judge.judge(block) for block in blocks]


class SubmittedParts(Closing):
    """Judges blocks by an executor, those of the next sources while earlier ones are compared.

    It holds no more parts than the executor allows, so memory doesn't grow with the sources. A
    context manager: afterwards it holds none.

    Args:
        judge: What judges a block; it is sent with each part.
        executor: What runs it.
    """

    def __init__(self, judge: BlockJudge, executor: PartExecutor) -> None:
        self._judge, self._executor = judge, executor
        self._sources: list[_Source] = []

    def close(self) -> None:
        """Forget what nobody wants any more."""
        self._sources.clear()

    @property
    def has_room(self) -> bool:
        """Whether another source may be begun: those that are begun leave something to do."""
        return self._num_pending < self._executor.parts_ahead

    def judged(
        self, blocks: Iterable[Block], *, reads_ahead: bool = True
    ) -> Generator[tuple[Block, JudgedBlock], None, None]:
        """Begin with the blocks of a source; yields each with what is known of its rows, in order.

        Args:
            blocks: The blocks.
            reads_ahead: Whether a block may be taken before the one before it is yielded; where
                not, all is judged here.

        Raises:
            WorkerError: A part could not be judged.
        """
        if not reads_ahead:
            return ((block, self._judge.judge(block)) for block in blocks)
        source = _Source(blocks)
        self._sources.append(source)
        self._submit()
        return self._received(source)

    @property
    def _num_pending(self) -> int:
        return sum(len(source.pending) for source in self._sources)

    def _submit(self) -> None:
        """Submit parts while there is room: of the source that is wanted first, then of others."""
        for source in self._sources:
            while self.has_room and not source.is_submitted:
                self._submit_next(source)

    def _submit_next(self, source: "_Source") -> None:
        if (part := source.next_part()) is not None:
            source.pending.append((part, self._executor.submit(self._judge, part)))

    def _received(self, source: "_Source") -> Generator[tuple[Block, JudgedBlock], None, None]:
        try:
            while source.pending or not source.is_submitted:
                if not source.pending:
                    # Later sources may have taken the room that this one needs to end.
                    self._submit_next(source)
                    continue
                blocks, pending = source.pending.popleft()
                judged = pending.result()
                self._submit()
                yield from zip(blocks, judged, strict=True)
            if source.error is not None:
                raise source.error
        finally:
            with suppress(ValueError):  # all are forgotten already
                self._sources.remove(source)


class _Source:
    """How far the parts of one source are."""

    def __init__(self, blocks: Iterable[Block]) -> None:
        self.pending: deque[tuple[list[Block], PendingPart]] = deque()
        self.is_submitted = False
        """Whether no part is left to submit."""
        self.error: Exception | None = None
        """Why its reading ended: told once what was read before is handed on."""
        self._blocks: Iterator[Block] = iter(blocks)

    def next_part(self) -> list[Block] | None:
        """Return the next blocks; None at the end."""
        part: list[Block] = []
        try:
            for block in islice(self._blocks, PART_BLOCKS):
                part.append(block)  # one by one: what comes before an error counts
        except Exception as error:
            self.error = error
        self.is_submitted = self.error is not None or len(part) < PART_BLOCKS
        return part or None
