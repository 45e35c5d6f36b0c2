"""The way of rows through all checks, block by block: accept, reject or skip."""

from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from alignflow.closing import Closing
from alignflow.data_validation.blocks import Block
from alignflow.data_validation.comparison import RowKeys, SeenRows
from alignflow.data_validation.config import DataKind, RowLimits
from alignflow.data_validation.contamination import BenchmarkTexts
from alignflow.data_validation.contract import Failure, in_order
from alignflow.data_validation.drafts import Draft
from alignflow.data_validation.forms import draft_row
from alignflow.data_validation.hash_table import HashTable
from alignflow.data_validation.judging import BlockJudge, JudgedBlock, draft_block
from alignflow.data_validation.masking import mask_draft
from alignflow.data_validation.parts import PartExecutor, SubmittedParts
from alignflow.data_validation.private_data import codes_under
from alignflow.data_validation.readers import Tally, read_blocks
from alignflow.data_validation.reasons import explain
from alignflow.data_validation.source_row import SourceRow
from alignflow.data_validation.streams import NamedFile
from alignflow.data_validation.workers import Workers

Outcome = Literal["accept", "reject", "skip"]


@dataclass
class Decision:
    """What becomes of one row."""

    block: Block
    index: int
    """Which row of the block."""
    kind: DataKind
    outcome: Outcome
    reason: str | None = None
    """A key of `REASONS` for a refused row."""
    detail: str | None = None
    flags: tuple[str, ...] = ()
    masked: list[str | None] | None = None
    """What the turns of a row say in which something is masked."""

    @property
    def line(self) -> int:
        """The number of the row in its file, from 1."""
        return self.block.first_line + self.index

    @cached_property
    def row(self) -> SourceRow:
        """The row, parsed once more."""
        return self.block.row(self.index)

    @cached_property
    def draft(self) -> Draft | None:
        """The canonical form of an accepted row."""
        if self.outcome != "accept" or self.row.values is None:
            return None
        draft = draft_row(self.row.values, self.kind)
        if self.masked is not None:
            mask_draft(draft, self.masked)
        return draft

    @property
    def message(self) -> str:
        """Why the row is refused, as part of a sentence."""
        return explain(self.reason, self.detail) if self.reason else ""


@dataclass
class CheckedBlock:
    """What becomes of the rows of a block."""

    block: Block
    kind: DataKind
    blank: set[int]
    failures: dict[int, Failure]
    flags: dict[int, set[str]]
    masked: dict[int, list[str | None]]
    """What the turns say of rows in which something is masked."""

    @property
    def num_plain(self) -> int:
        """Rows that are accepted without a flag."""
        return len(self.block) - len(self._noted)

    def noted(self) -> Iterator[Decision]:
        """Yield in order what becomes of the rows that are not plainly accepted."""
        return map(self._decision, sorted(self._noted))

    def decisions(self) -> Iterator[Decision]:
        """Yield in order what becomes of every row."""
        return map(self._decision, range(len(self.block)))

    @cached_property
    def _noted(self) -> set[int]:
        return self.blank | self.failures.keys() | self.flags.keys()

    def _decision(self, index: int) -> Decision:
        if index in self.blank:
            return Decision(self.block, index, self.kind, "skip")
        failure = self.failures.get(index)
        if failure:
            return Decision(self.block, index, self.kind, "reject", *failure)
        flags = in_order(self.flags[index]) if index in self.flags else ()
        return Decision(
            self.block,
            index,
            self.kind,
            "accept",
            flags=tuple(flags),
            masked=self.masked.get(index),
        )


class RowChecker(Closing):
    """Decides on rows of one set, in order; a refused row is no earlier row to a later one.

    A context manager: with it end the processes that it has started.

    Args:
        kind: What the rows are.
        limits: Bounds of a single row.
        training_prompts: Hashes of prompts that must not occur (`split_leak`).
        benchmark: Items that must not occur (`eval_contamination`).
        num_processes: How many judge rows where there are many; as many as cores if None.
        executor: What judges rows instead, such as a cluster.
    """

    def __init__(
        self,
        kind: DataKind,
        limits: RowLimits,
        *,
        training_prompts: HashTable | None = None,
        benchmark: BenchmarkTexts | None = None,
        num_processes: int | None = None,
        executor: PartExecutor | None = None,
    ) -> None:
        self._kind, self._limits = kind, limits
        judge = BlockJudge(kind, limits, benchmark or BenchmarkTexts(()))
        self._judging: Workers | SubmittedParts = (
            SubmittedParts(judge, executor) if executor else Workers(judge, num_processes)
        )
        self._seen = SeenRows(kind)
        self._training_prompts = training_prompts or HashTable()

    def close(self) -> None:
        """End the processes that judge rows."""
        self._judging.close()

    @property
    def has_room(self) -> bool:
        """Whether the next source may be begun before an earlier one is at its end.

        What becomes of its rows may be asked for only after that.
        """
        return isinstance(self._judging, SubmittedParts) and self._judging.has_room

    def check_file(self, file: NamedFile) -> Generator[CheckedBlock, None, None]:
        """Yield what becomes of the rows of a file, a block at a time, in order.

        Raises:
            DataError: The file is refused as a whole; `reason` holds the code.
        """
        return self._tallied(file, self.check(read_blocks(file, self._limits)))

    def _tallied(
        self, file: NamedFile, blocks: Iterable[CheckedBlock]
    ) -> Generator[CheckedBlock, None, None]:
        tally = Tally()
        for checked in blocks:
            num_records = len(checked.block) - len(checked.blank)
            tally.add(num_records, (failure.reason for failure in checked.failures.values()))
            yield checked
        tally.check(file)

    def check(
        self, blocks: Iterable[Block], *, reads_ahead: bool = True
    ) -> Generator[CheckedBlock, None, None]:
        """Yield what becomes of the rows of a source, a block at a time, in order.

        Args:
            blocks: All rows of the source.
            reads_ahead: Whether blocks may be taken before what becomes of earlier ones is
                yielded, so that several processes have something to do.
        """
        return self._compared(self._judging.judged(blocks, reads_ahead=reads_ahead))

    def _compared(
        self, judged_blocks: Iterable[tuple[Block, JudgedBlock]]
    ) -> Generator[CheckedBlock, None, None]:
        self._seen.start_file()
        for block, judged in judged_blocks:
            yield self._compare(block, judged)

    def _compare(self, block: Block, judged: JudgedBlock) -> CheckedBlock:
        """Decide on the rows of which only the comparison and policy may say anything yet."""
        rows = judged.compared
        later = dict(judged.policy)
        later |= dict.fromkeys(judged.contaminated, Failure("eval_contamination", None))
        is_leak = self._training_prompts.contains(judged.keys.prompt)
        later |= dict.fromkeys(rows[is_leak].tolist(), Failure("split_leak", None))
        compared = self._seen.compare(judged.keys, np.isin(rows, list(later)))
        first = {int(rows[at]): Failure(code, None) for at, code in compared.reasons.items()}
        failures = later | first | judged.refused
        flags = {index: flags for index, flags in judged.flags.items() if index not in failures}
        for at in compared.repeated_prompts:
            flags.setdefault(int(rows[at]), set()).add("duplicate_prompt")
        return CheckedBlock(block, self._kind, set(judged.blank), failures, flags, judged.masked)


def prompts_of(file: NamedFile, kind: DataKind, limits: RowLimits) -> HashTable:
    """Return the hashes of the prompts of a file, whether their rows pass the checks or not.

    Raises:
        DataError: The file is refused as a whole.
    """
    tally, prompts = Tally(), HashTable()
    for block in read_blocks(file, limits):
        drafted = draft_block(block, kind, codes_under(limits, "mask"))
        refused = (failure.reason for failure in drafted.refused.values())
        tally.add(len(block) - len(drafted.blank), refused)
        prompts.add(RowKeys.of(drafted.records).prompt)
    tally.check(file)
    return prompts
