"""Feeding repaired rows of a quarantine back: they become a source of the set."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from alignflow.data_validation.blocks import parsed_blocks
from alignflow.data_validation.checking import Decision, RowChecker
from alignflow.data_validation.config import DataKind, RowLimits
from alignflow.data_validation.origin import ORIGIN_KEY, Origin
from alignflow.data_validation.parsing import parse_object
from alignflow.data_validation.quarantine import read_quarantine
from alignflow.data_validation.reasons import RowRefused
from alignflow.data_validation.source_row import SourceRow
from alignflow.errors import DataError


@dataclass(frozen=True)
class StillRefused:
    """A row that was changed and is refused all the same."""

    line: int
    """In the quarantine."""
    reason: str
    message: str


@dataclass
class RequeueReport:
    """What became of the rows of a quarantine."""

    num_added: int = 0
    num_there: int = 0
    """Repaired rows that the output held already, just so."""
    num_untouched: int = 0
    refused: list[StillRefused] = field(default_factory=list)


def requeue(
    quarantine: Path, kind: DataKind, output: Path, limits: RowLimits | None = None
) -> RequeueReport:
    """Write the rows that somebody repaired, and that pass now, to a file of rows.

    The quarantine is only read. What the output holds of a row is replaced by what the quarantine
    holds of it now, so that another run adds nothing twice.

    Args:
        quarantine: A `quarantine.jsonl` in which rows were changed, or a copy of one.
        kind: What its rows are.
        output: JSON Lines, a source for a recipe; made where it isn't there, and replaced at once.
        limits: Bounds of a single row.

    Raises:
        DataError: A file can't be read or written, or isn't what it should be.
    """
    limits = limits or RowLimits()
    report = RequeueReport()
    rows = _read_output(output)
    with RowChecker(kind, limits) as checker:
        for checked in checker.check(parsed_blocks(_repaired(quarantine, limits))):
            for decision in checked.decisions():
                _take(decision, rows, report)
    if report.num_added:
        _write_output(output, rows)
    return report


def _take(decision: Decision, rows: dict[Origin, dict[str, Any]], report: RequeueReport) -> None:
    """Put a row that passes among those of the output, and count what becomes of it."""
    if decision.reason is not None:
        report.refused.append(StillRefused(decision.line, decision.reason, decision.message))
        return
    if decision.row.values is None:
        report.num_untouched += 1
        return
    origin = Origin.of(decision.row.values)
    assert origin is not None  # of `_repaired`
    is_there = rows.get(origin) == decision.row.values
    report.num_there += is_there
    report.num_added += not is_there
    rows[origin] = decision.row.values


def _repaired(quarantine: Path, limits: RowLimits) -> Iterator[SourceRow]:
    """Yield the rows that were changed, each with where it was refused; the others are blank."""
    for number, row in enumerate(read_quarantine(quarantine), start=1):
        if not row.is_touched:
            yield SourceRow(number, None)
            continue
        origin = Origin(file=row.file, line=row.line, reason=row.reason)
        text = row.row.encode() if isinstance(row.row, str) else orjson.dumps(row.row)
        try:
            values = parse_object(text, limits.max_json_depth)
        except RowRefused as refused:
            yield SourceRow(number, text, refused=refused)
        else:
            yield SourceRow(number, text, {**values, ORIGIN_KEY: origin.model_dump()})


def _read_output(output: Path) -> dict[Origin, dict[str, Any]]:
    """Return the rows that earlier runs wrote, by origin."""
    rows: dict[Origin, dict[str, Any]] = {}
    try:
        content = output.read_bytes() if output.exists() else b""
    except OSError as error:
        raise DataError(f"{output}: can't be read ({error.strerror}).") from None
    for line in filter(bytes.strip, content.split(b"\n")):
        try:
            values = orjson.loads(line)
        except orjson.JSONDecodeError:
            values = None
        origin = Origin.of(values if isinstance(values, dict) else None)
        if origin is None:
            raise DataError(
                f"{output}: there is a row that wasn't requeued; name a file of its own for those "
                "that are."
            )
        rows[origin] = values
    return rows


def _write_output(output: Path, rows: dict[Origin, dict[str, Any]]) -> None:
    partial = output.with_name(f"{output.name}.partial")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            for values in rows.values():
                file.write(orjson.dumps(values, option=orjson.OPT_APPEND_NEWLINE))
        os.replace(partial, output)
    except OSError as error:
        raise DataError(f"{output}: can't be written ({error.strerror}).") from None
