"""From sources to a dataset artifact: every row is decided on, the rest is written and judged."""

import tempfile
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np

from alignflow.data_validation.blocks import parsed_blocks
from alignflow.data_validation.canonical import MAX_ATTRIBUTE
from alignflow.data_validation.card import Card, Counts, Source
from alignflow.data_validation.checking import CheckedBlock, Decision, RowChecker
from alignflow.data_validation.comparison import row_hash
from alignflow.data_validation.config import DataKind, DatasetConfig, NearDuplicatesConfig
from alignflow.data_validation.contamination import BenchmarkTexts
from alignflow.data_validation.drafts import Draft
from alignflow.data_validation.expectations import judge_set
from alignflow.data_validation.hub import HubRows, is_hub_set
from alignflow.data_validation.origin import Origin
from alignflow.data_validation.parts import PartExecutor
from alignflow.data_validation.quarantine import QUARANTINE_NAME, Quarantine, repairable
from alignflow.data_validation.reasons import explain
from alignflow.data_validation.shards import StagedRows, as_row, canonical_record
from alignflow.data_validation.splitting import group_of, tree_group
from alignflow.data_validation.statistics import SetStatistics
from alignflow.data_validation.streams import NamedFile, read_to_end
from alignflow.errors import AlignflowError, DataError
from alignflow.sources import expand, fetch_file

DATA_DOCS_NAME = "data_docs"

_REASONS_NAMED = 3
_REQUEUED_NAMED = 1000


class Progress(NamedTuple):
    """How far an ingest is."""

    source: str
    """What is being read."""
    accepted: int
    refused: int


def ingest(
    config: DatasetConfig,
    kind: DataKind,
    output: Path,
    *,
    benchmark_texts: Iterable[str] = (),
    on_progress: Callable[[Progress], None] | None = None,
    cache_dir: Path | None = None,
    executor: PartExecutor | None = None,
) -> Card:
    """Read all sources and write a dataset artifact.

    The folder holds `train/` and `held_out/` in the canonical form, `quarantine.jsonl`,
    `data_docs/` and, written last, `card.json`. Equal sources and configs give equal files.

    Args:
        config: Sources, limits, split and bounds.
        kind: What the rows are.
        output: Empty folder, made where it isn't there.
        benchmark_texts: Items of the benchmarks the model is judged on.
        on_progress: Called after each block of rows.
        cache_dir: Where downloads are kept; None keeps none.
        executor: Where rows are judged, if not in processes of this machine.

    Raises:
        DataError: A source can't be read or is refused as a whole, no row is accepted, or a
            critical expectation fails; `quarantine.jsonl` then tells why rows were refused.
    """
    output.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix=".ingest-", dir=output) as work,
        Quarantine(output / QUARANTINE_NAME) as quarantine,
        StagedRows(Path(work) / "accepted.parquet", kind) as staged,
        RowChecker(
            kind, config.limits, benchmark=BenchmarkTexts(benchmark_texts), executor=executor
        ) as checker,
    ):
        run = _Ingest(config, kind, staged, quarantine)
        cache = cache_dir or Path(work) / "cache"
        for reading in _begun(readings(config, kind, cache), checker):
            run.read(reading, on_progress)
            if run.is_full:
                break
        if not run.statistics.counts["accept"]:
            raise _refusal(run.statistics, output, "no row is accepted")
        if config.near_duplicates is not None:
            run.compare_texts(config.near_duplicates, Path(work))
        sizes = staged.split(output, config.held_out_share, config.max_held_out_rows)
    expectations = judge_set(
        run.statistics,
        kind,
        config.expectations,
        output / DATA_DOCS_NAME,
        title=f"Training set ({kind})",
    )
    card = run.card(sizes).replaced(expectations=expectations)
    failed = [
        item.name for item in expectations if item.severity == "critical" and not item.success
    ]
    if failed:
        raise _refusal(run.statistics, output, _complaint(card, failed))
    card.save(output)
    return card


class Reading(NamedTuple):
    """One source, ready to be read."""

    name: str
    check: Callable[[RowChecker], Generator[CheckedBlock, None, None]]
    """Reads and checks its rows."""
    describe: Callable[[], Source]
    """Called at the end."""
    finish: Callable[[], None]
    """Reads what is left where the end of a file says whether it is whole."""


def readings(config: DatasetConfig, kind: DataKind, cache: Path) -> Iterator[Reading]:
    """Yield each file, and each set of the hub, that the sources name."""
    for source in config.sources:
        if is_hub_set(source):
            yield _hub_reading(source, kind)
        else:
            for uri in expand(source):
                yield _file_reading(uri, config, cache)


def _hub_reading(source: str, kind: DataKind) -> Reading:
    rows = HubRows(source, kind)
    return Reading(
        name=source,
        # What is read ahead would count into the digest.
        check=lambda checker: checker.check(parsed_blocks(rows.read()), reads_ahead=False),
        describe=lambda: Source(uri=rows.uri, sha256=rows.sha256, bytes=rows.num_bytes),
        finish=lambda: None,
    )


def _file_reading(uri: str, config: DatasetConfig, cache: Path) -> Reading:
    local = fetch_file(uri, cache)
    file = NamedFile(local.path, local.uri)
    return Reading(
        name=uri,
        check=lambda checker: checker.check_file(file),
        describe=lambda: Source(uri=local.uri, sha256=local.sha256, bytes=local.size),
        finish=lambda: read_to_end(file),
    )


class _BegunReading(NamedTuple):
    """One source whose rows may be on their way already."""

    reading: Reading
    blocks: Generator[CheckedBlock, None, None]


def _begun(sources: Iterator[Reading], checker: RowChecker) -> Iterator[_BegunReading]:
    """Yield the sources in order, begun with while there is room for more to be checked at once.

    Raises:
        AlignflowError: A source can't be reached; told once those before it are done with.
    """
    begun: deque[_BegunReading] = deque()
    failure: AlignflowError | None = None
    is_last = False
    while not is_last or begun:
        while not is_last and (not begun or checker.has_room):
            try:
                reading = next(sources, None)
            except AlignflowError as error:
                reading, failure = None, error
            if reading is None:
                is_last = True
            else:
                begun.append(_BegunReading(reading, reading.check(checker)))
        if begun:
            yield begun.popleft()
    if failure is not None:
        raise failure


class _Ingest:
    """What accumulates while sources are read."""

    def __init__(
        self,
        config: DatasetConfig,
        kind: DataKind,
        staged: StagedRows,
        quarantine: Quarantine,
    ) -> None:
        self.statistics = SetStatistics()
        self._config = config
        self._kind = kind
        self._staged = staged
        self._quarantine = quarantine
        self._sources: list[Source] = []
        self._num_requeued = 0
        self._requeued: list[Origin] = []

    @property
    def is_full(self) -> bool:
        """Whether as many rows are accepted as are wanted."""
        return self.statistics.counts["accept"] == self._config.max_rows

    def read(self, begun: "_BegunReading", on_progress: Callable[[Progress], None] | None) -> None:
        """Decide on the rows of one source, until the set is full."""
        reading = begun.reading
        name = Path(reading.name).name
        with closing(begun.blocks) as blocks:
            for checked in blocks:
                self._take(checked.decisions(), name)
                if on_progress:
                    counts = self.statistics.counts
                    on_progress(Progress(reading.name, counts["accept"], counts["reject"]))
                if self.is_full:
                    break
        if self.is_full:
            reading.finish()
        self._sources.append(reading.describe())

    def _take(self, decisions: Iterable[Decision], source: str) -> None:
        records, groups = [], []
        for decision in decisions:
            if decision.draft is not None:
                identity = decision.draft.id or f"{row_hash(decision.draft):016x}"
                file, line = self._place(decision, source)
                records.append(canonical_record(decision.draft, identity, file, line))
                groups.append(self._group_of(decision.draft))
                self.statistics.add_accepted(decision.draft, identity, decision.flags)
                if self.is_full:
                    break
            elif decision.reason is not None:
                self._refuse(decision, decision.reason, source)
            else:
                self.statistics.counts["skip"] += 1
        self._staged.add(records, groups)

    def _place(self, decision: Decision, source: str) -> tuple[str, int]:
        """Return file and line of a row; of a repaired one where it was refused."""
        origin = Origin.of(decision.row.values)
        if origin is None:
            return source, decision.line
        self._num_requeued += 1
        if len(self._requeued) < _REQUEUED_NAMED:
            self._requeued.append(origin)
        return origin.file, origin.line

    def _group_of(self, draft: Draft) -> int:
        group = group_of(draft, self._config.seed)
        if draft.tree is not None:
            self._staged.links.join(group, tree_group(draft.tree, self._config.seed))
        return group

    def _refuse(self, decision: Decision, reason: str, source: str) -> None:
        row = repairable(decision.row)
        self._quarantine.add(source, decision.line, reason, decision.message, row)
        self.statistics.add_refused(reason)

    def compare_texts(self, config: NearDuplicatesConfig, work: Path) -> None:
        """Look for accepted rows that nearly repeat an earlier one: flag or refuse them."""
        from alignflow.data_validation.near_duplicates import find_near_duplicates

        earlier_R = find_near_duplicates(self._staged.texts(), config.threshold, work)
        is_near_R = earlier_R >= 0
        self.statistics.num_near_duplicates = int(is_near_R.sum())
        if config.action == "flag":
            self._staged.keep_together(earlier_R)
            self.statistics.add_flag("near_duplicate", np.flatnonzero(is_near_R).tolist())
            return
        message = explain("near_duplicate", None)
        for record in self._staged.drop(is_near_R):
            self.statistics.remove_ratings(record.get("attributes") or {})
            source, line = record.pop("source"), record.pop("line")
            self._quarantine.add(source, line, "near_duplicate", message, as_row(record))
        self.statistics.drop(is_near_R, "near_duplicate")

    def card(self, sizes: dict[str, int]) -> Card:
        """Return the card of the set, without its expectations."""
        statistics = self.statistics
        return Card(
            kind=self._kind,
            sources=self._sources,
            counts=Counts(
                read=statistics.num_judged,
                accepted=statistics.counts["accept"],
                refused=statistics.counts["reject"],
                skipped=statistics.counts["skip"],
                train=sizes["train"],
                held_out=sizes["held_out"],
                requeued=self._num_requeued,
            ),
            reasons=dict(statistics.reasons.most_common()),
            flags=dict(statistics.flags.most_common()),
            config=self._config,
            requeued=self._requeued,
            lengths=statistics.lengths,
            scripts=dict(statistics.scripts.most_common()),
            ratings={
                name: [levels[level] for level in range(MAX_ATTRIBUTE + 1)]
                for name, levels in sorted(statistics.ratings.items())
            },
            examples=self._quarantine.examples,
            expectations=[],
        )


def _complaint(card: Card, failed: list[str]) -> str:
    bounds = card.config.expectations
    if "few_refused" in failed:
        share = card.counts.refused / card.counts.read
        return (
            f"{share:.1%} of the rows are refused, more than "
            f"max_refused_share ({bounds.max_refused_share:.1%})"
        )
    if "enough_rows" in failed:
        return f"{card.counts.accepted} rows are accepted, fewer than min_rows ({bounds.min_rows})"
    return f"the set fails {', '.join(failed)}"


def _refusal(statistics: SetStatistics, output: Path, complaint: str) -> DataError:
    """Return the error for a set that can't be used: the commonest reasons, and where to look."""
    return DataError(
        f"{complaint}: {statistics.counts['reject']} of {statistics.num_judged} rows refused"
        f"{_commonest(statistics.reasons)}; each is explained in {output / QUARANTINE_NAME}.",
        reason="set_refused",
    )


def _commonest(reasons: Counter[str]) -> str:
    named = ", ".join(f"{code} {count}" for code, count in reasons.most_common(_REASONS_NAMED))
    return f" ({named})" if named else ""
