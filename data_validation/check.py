"""Checking one file, as `alignflow data check` does."""

from collections.abc import Iterable
from pathlib import Path

from alignflow.data_validation.checking import RowChecker, prompts_of
from alignflow.data_validation.config import DataKind, RowLimits
from alignflow.data_validation.contamination import BenchmarkTexts
from alignflow.data_validation.report import FileReport
from alignflow.data_validation.streams import NamedFile
from alignflow.errors import DataError

_NO_COLUMN = {"missing_key"}


def check_file(
    path: Path,
    kind: DataKind,
    limits: RowLimits | None = None,
    *,
    name: str | None = None,
    against: NamedFile | None = None,
    decontaminate: Iterable[str] = (),
) -> FileReport:
    """Decide on every row of a local file; nothing is written.

    Args:
        path: The file.
        kind: What its rows are.
        limits: Bounds of a single row.
        name: How the user knows the file, where that is not its path.
        against: The training side of a split, whose prompts must not occur.
        decontaminate: Texts of benchmark items that must not occur.

    Raises:
        DataError: `path` doesn't exist, or `against` is refused as a whole.
    """
    limits = limits or RowLimits()
    file = NamedFile(path, name or str(path))
    checker = RowChecker(
        kind,
        limits,
        training_prompts=prompts_of(against, kind, limits) if against else None,
        benchmark=BenchmarkTexts(decontaminate),
    )
    report = FileReport(file.name)
    try:
        with checker:
            for checked in checker.check_file(file):
                report.add_block(checked)
    except DataError as error:
        if error.reason is None:
            raise
        return FileReport(file.name, error.reason, str(error))
    if file.format == "csv" and report.decision == "reject" and set(report.reasons) == _NO_COLUMN:
        # Where every record lacks a key, it is the header that lacks it.
        return FileReport(
            file.name,
            "missing_key",
            f"{file.name}: the header lacks columns that the rows need; "
            "name them in the first record, with commas between them.",
        )
    return report
