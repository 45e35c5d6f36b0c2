"""Records of a benchmark file, and errors that name file, item and field."""

import csv
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from alignflow.errors import DataError


@dataclass(frozen=True)
class Record:
    """One item as it stands in the file."""

    path: Path
    number: int
    """Place in the file, from 1; the header of a CSV file does not count."""
    values: dict[str, Any]

    def has(self, *names: str) -> bool:
        """Whether the item has all of these fields."""
        return all(self.values.get(name) is not None for name in names)

    def text(self, name: str) -> str:
        """Return a field that must hold text."""
        value = self._value(name)
        if not isinstance(value, str) or not value.strip():
            raise self.error(name, f"must hold text, not {_shown(value)}")
        return value

    def text_or_none(self, name: str) -> str | None:
        """Return a field that may hold text, None where it is missing or blank."""
        return self.text(name) if str(self.values.get(name) or "").strip() else None

    def number_in(self, name: str) -> float:
        """Return a field that must hold a number; CSV holds it as text."""
        value = self._value(name)
        try:
            return float(value)
        except (TypeError, ValueError):
            raise self.error(name, f"must hold a number, not {_shown(value)}") from None

    def mapping(self, name: str) -> dict[str, Any]:
        """Return a field that must hold a JSON object with at least one key."""
        value = self._value(name)
        if not isinstance(value, dict) or not value:
            raise self.error(name, f"must hold an object, not {_shown(value)}")
        return value

    def texts(self, name: str) -> list[str]:
        """Return a field that must hold a list of texts."""
        value = self._value(name)
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            raise self.error(name, f"must hold a list of texts, not {_shown(value)}")
        return value

    def error(self, name: str, problem: str) -> DataError:
        """Return the error that says what is wrong with a field."""
        return DataError(f"{self.path}: item {self.number}: field {name!r} {problem}.")

    def _value(self, name: str) -> Any:
        if self.values.get(name) is None:
            known = ", ".join(repr(key) for key in list(self.values)[:12])
            raise self.error(name, f"is missing; the item has {known or 'no fields'}")
        return self.values[name]


def read_records(path: Path) -> list[Record]:
    """Read a JSON array, JSON lines, CSV with a header or Parquet, told apart by suffix.

    A UTF-8 byte order mark is skipped.

    Raises:
        DataError: The file can't be read, is empty, or isn't what its suffix says.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        known = ", ".join(_READERS)
        raise DataError(f"{path}: a benchmark file ends in one of {known}; rename or convert it.")
    rows = reader(path)
    if not rows:
        raise DataError(f"{path}: holds no items; give a complete file.", reason="empty_file")
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise DataError(f"{path}: item {number} must be an object, not {_shown(row)}.")
    return [Record(path, number, row) for number, row in enumerate(rows, start=1)]


def _read_text(path: Path) -> str:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: not UTF-8 at byte {error.start}; convert the file.", reason="not_utf8"
        ) from None
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror}); check the path.") from None
    if text.startswith("version https://git-lfs.github.com/spec/"):
        raise DataError(
            f"{path}: is a Git LFS pointer, not the data; fetch it with `git lfs pull`.",
            reason="lfs_pointer",
        )
    return text


def _read_json(path: Path) -> list[Any]:
    try:
        rows = json.loads(_read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON ({error}); give the original file.") from None
    if not isinstance(rows, list):
        raise DataError(f"{path}: must hold a JSON array of items, not {_shown(rows)}.")
    return rows


def _read_jsonl(path: Path) -> list[Any]:
    rows = []
    for line, text in enumerate(_read_text(path).split("\n"), start=1):
        if not text.strip():
            continue
        try:
            rows.append(json.loads(text))
        except (json.JSONDecodeError, RecursionError) as error:
            raise DataError(f"{path}:{line}: not valid JSON ({error}); mend the line.") from None
    return rows


def _read_csv(path: Path) -> list[Any]:
    try:
        return list(csv.DictReader(io.StringIO(_read_text(path), newline=""), strict=True))
    except csv.Error as error:
        raise DataError(f"{path}: not valid CSV ({error}); give the original file.") from None


def _read_parquet(path: Path) -> list[Any]:
    try:
        rows: list[Any] = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: can't be read as Parquet ({error}).") from None
    return rows


_READERS: dict[str, Callable[[Path], list[Any]]] = {
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
