"""What can be said of each row of a block by itself, in whichever process."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from alignflow.data_validation.blocks import Block
from alignflow.data_validation.comparison import RowKeys
from alignflow.data_validation.config import DataKind, RowLimits
from alignflow.data_validation.contamination import BenchmarkTexts
from alignflow.data_validation.contract import Contract, Failure
from alignflow.data_validation.forms import draft_row, pair_of, pairs_of
from alignflow.data_validation.masking import mask_records
from alignflow.data_validation.private_data import PrivateCode, codes_under
from alignflow.data_validation.reasons import RowRefused
from alignflow.data_validation.records import Records
from alignflow.data_validation.source_row import SourceRow


@dataclass(slots=True)
class JudgedBlock:
    """What is known of the rows of a block before they are compared with others, by their index."""

    blank: list[int] = field(default_factory=list)
    refused: dict[int, Failure] = field(default_factory=dict)
    """Rows that no comparison is needed for."""
    policy: dict[int, Failure] = field(default_factory=dict)
    """Rows that a policy refuses, unless the comparison finds a reason, which would come first."""
    contaminated: set[int] = field(default_factory=set)
    flags: dict[int, set[str]] = field(default_factory=dict)
    masked: dict[int, list[str | None]] = field(default_factory=dict)
    """What all turns say of the rows in which something is masked."""
    compared: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """The rows to compare, in order: those that are neither blank nor `refused`."""
    keys: RowKeys = field(default_factory=lambda: RowKeys.of(Records()))
    """Of the rows to compare."""


class BlockJudge:
    """Judges blocks of rows of one kind.

    Args:
        kind: What the rows are.
        limits: Bounds of a single row.
        benchmark: Items that must not occur.
    """

    def __init__(self, kind: DataKind, limits: RowLimits, benchmark: BenchmarkTexts) -> None:
        self._kind, self._limits = kind, limits
        self._masked = codes_under(limits, "mask")
        self._contract = Contract(kind, limits)
        self._benchmark = benchmark

    def __reduce__(self) -> tuple[Any, ...]:
        """Let it be sent to another process, which makes its own schemas."""
        return type(self), (self._kind, self._limits, self._benchmark)

    def judge(self, block: Block) -> JudgedBlock:
        """Parse the rows, bring them into the canonical form and check each by itself."""
        records, drafted, blank, refused, masked = draft_block(block, self._kind, self._masked)
        judged = JudgedBlock(blank, refused)
        contract = self._contract.judge(records)
        is_compared = np.ones(len(records), dtype=bool)
        for at, failure in contract.failures.items():
            if failure.is_policy:
                judged.policy[drafted[at]] = failure
            else:
                judged.refused[drafted[at]] = failure
                is_compared[at] = False
        judged.contaminated = {drafted[at] for at in self._benchmark.find(records)}
        for found in (contract.flags, masked):
            for at, flags in found.items():
                judged.flags.setdefault(drafted[at], set()).update(flags)
        judged.masked = {drafted[at]: records.contents_of(at) for at in masked}
        judged.compared = np.array(drafted, dtype=np.int64)[is_compared]
        judged.keys = RowKeys.of(records).where(is_compared)
        return judged


class DraftedBlock(NamedTuple):
    """The rows of a block that have a canonical form, and what becomes of the others."""

    records: Records
    indices: list[int]
    """Which row each record is."""
    blank: list[int]
    refused: dict[int, Failure]
    masked: dict[int, set[str]]
    """Flags of the records in which something is masked."""


def draft_block(block: Block, kind: DataKind, masked: Sequence[PrivateCode] = ()) -> DraftedBlock:
    """Parse the rows of a block and bring them into the canonical form.

    Args:
        block: The rows.
        kind: What they are.
        masked: What is masked in their texts.
    """
    drafted = DraftedBlock(Records(), [], [], {}, {})
    for indices, values, rows in block.chunks():
        texts = pairs_of(values) if values and kind == "preference" else None
        if texts:
            drafted.records.add_pairs(texts)
            drafted.indices.extend(indices)
        elif values:
            for index, row in zip(indices, values, strict=True):
                _draft(drafted, index, row, kind)
        else:
            for index, source_row in zip(indices, rows, strict=True):
                _draft_source_row(drafted, index, source_row, kind)
    drafted.masked.update(mask_records(drafted.records, masked))
    return drafted


def _draft_source_row(drafted: DraftedBlock, index: int, row: SourceRow, kind: DataKind) -> None:
    if row.refused:
        drafted.refused[index] = Failure(row.refused.reason, row.refused.detail)
    elif row.values is None:
        drafted.blank.append(index)
    else:
        _draft(drafted, index, row.values, kind)


def _draft(drafted: DraftedBlock, index: int, values: dict[str, Any], kind: DataKind) -> None:
    try:
        pair = pair_of(values) if kind == "preference" else None
        if pair:
            drafted.records.add_pair(pair)
        else:
            drafted.records.add(draft_row(values, kind))
    except RowRefused as refused:
        drafted.refused[index] = Failure(refused.reason, refused.detail)
    else:
        drafted.indices.append(index)
