"""The way of a row through all checks, chunk by chunk: accept, reject or skip."""

from collections.abc import Generator, Iterable, Iterator
from collections.abc import Set as AbstractSet
from typing import Literal, NamedTuple

from alignflow.data_validation.comparison import BenchmarkTexts, RowKeys, SeenRows, prompt_hash
from alignflow.data_validation.config import DataKind, RowLimits
from alignflow.data_validation.contract import Contract, Failure, in_order
from alignflow.data_validation.drafts import Draft
from alignflow.data_validation.forms import draft_row
from alignflow.data_validation.masking import mask_drafts
from alignflow.data_validation.private_data import codes_under
from alignflow.data_validation.reasons import RowRefused, explain
from alignflow.data_validation.source_row import SourceRow

_CHUNK_ROWS = 2048
_CHUNK_BYTES = 8 << 20

Outcome = Literal["accept", "reject", "skip"]


class Decision(NamedTuple):
    """What becomes of one row."""

    row: SourceRow
    outcome: Outcome
    reason: str | None = None
    """A key of `REASONS` for a refused row."""
    detail: str | None = None
    flags: tuple[str, ...] = ()
    draft: Draft | None = None
    """The canonical form of an accepted row."""

    @property
    def message(self) -> str:
        """Why the row is refused, as part of a sentence."""
        return explain(self.reason, self.detail) if self.reason else ""


class RowChecker:
    """Decides on rows of one set, in order; a refused row is no earlier row to a later one.

    Args:
        kind: What the rows are.
        limits: Bounds of a single row.
        training_prompts: `prompt_hash` of prompts that must not occur (`split_leak`).
        benchmark: Items that must not occur (`eval_contamination`).
    """

    def __init__(
        self,
        kind: DataKind,
        limits: RowLimits,
        *,
        training_prompts: AbstractSet[int] = frozenset(),
        benchmark: BenchmarkTexts | None = None,
    ) -> None:
        self._kind = kind
        self._contract = Contract(kind, limits)
        self._masked = codes_under(limits, "mask")
        self._seen = SeenRows()
        self._training_prompts = training_prompts
        self._benchmark = benchmark or BenchmarkTexts(())

    def check(self, rows: Iterable[SourceRow]) -> Generator[list[Decision], None, None]:
        """Yield the decisions on the rows of one file, a chunk at a time, in order."""
        self._seen.start_file()
        for chunk in _chunks(rows):
            yield self._check_chunk(chunk)

    def _check_chunk(self, rows: list[SourceRow]) -> list[Decision]:
        drafted = [_draft(row, self._kind) for row in rows]
        drafts = [draft for draft in drafted if isinstance(draft, Draft)]
        masked = mask_drafts(drafts, self._masked)
        judged = self._contract.judge(drafts)
        is_contaminated = self._benchmark.find(drafts)
        decisions = []
        index = 0
        for row, draft in zip(rows, drafted, strict=True):
            if not isinstance(draft, Draft):
                decisions.append(draft)
                continue
            failure = judged.failures.get(index)
            if failure and not failure.is_policy:
                decisions.append(_rejected(row, failure))
            else:
                flags = judged.flags.get(index, set()) | masked.get(index, set())
                decisions.append(self._compare(row, draft, failure, flags, is_contaminated[index]))
            index += 1
        return decisions

    def _compare(
        self,
        row: SourceRow,
        draft: Draft,
        policy_failure: Failure | None,
        flags: set[str],
        is_contaminated: bool,
    ) -> Decision:
        """Decide on a row of which only policy may say anything yet."""
        keys = RowKeys.of(draft)
        reason = self._seen.find(keys)
        if reason is None and keys.prompt in self._training_prompts:
            reason = "split_leak"
        if reason is None and is_contaminated:
            reason = "eval_contamination"
        failure = Failure(reason, None) if reason else policy_failure
        if failure:
            return _rejected(row, failure)
        if self._seen.has_prompt(keys):
            flags.add("duplicate_prompt")
        self._seen.add(keys)
        return Decision(row, "accept", flags=tuple(in_order(flags)), draft=draft)


def _rejected(row: SourceRow, failure: Failure) -> Decision:
    return Decision(row, "reject", failure.reason, failure.detail)


def prompts_of(rows: Iterable[SourceRow], kind: DataKind) -> set[int]:
    """Return `prompt_hash` of every row that has a prompt, whether it passes the checks or not."""
    drafted = (_draft(row, kind) for row in rows)
    return {prompt_hash(draft.prompt) for draft in drafted if isinstance(draft, Draft)}


def _draft(row: SourceRow, kind: DataKind) -> Draft | Decision:
    if row.refused:
        return Decision(row, "reject", row.refused.reason, row.refused.detail)
    if row.values is None:
        return Decision(row, "skip")
    try:
        return draft_row(row.values, kind)
    except RowRefused as refused:
        return Decision(row, "reject", refused.reason, refused.detail)


def _chunks(rows: Iterable[SourceRow]) -> Iterator[list[SourceRow]]:
    """Yield rows in lists that are bounded in number and in bytes."""
    chunk: list[SourceRow] = []
    num_bytes = 0
    for row in rows:
        chunk.append(row)
        num_bytes += len(row.original or b"")
        if len(chunk) >= _CHUNK_ROWS or num_bytes >= _CHUNK_BYTES:
            yield chunk
            chunk, num_bytes = [], 0
    if chunk:
        yield chunk
