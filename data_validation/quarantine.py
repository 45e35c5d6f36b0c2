"""The quarantine: refused rows, whole, in a file that a person can repair and feed back."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
from pydantic import ValidationError

from alignflow.closing import Closing
from alignflow.config import Config
from alignflow.data_validation.card import RefusedRow
from alignflow.data_validation.masking import masked
from alignflow.data_validation.parsing import LONE_SURROGATE
from alignflow.data_validation.source_row import SourceRow
from alignflow.errors import DataError

QUARANTINE_NAME = "quarantine.jsonl"
MAX_ROW_BYTES = 1 << 20
"""Longest row that is kept whole."""

_EXAMPLE_CHARS = 300
_EXAMPLES_PER_REASON = 3
_LONGEST_EXAMPLE_LOOK = 4 * _EXAMPLE_CHARS
"""What is cut off an example may be half of a key: look at more than is shown."""


class QuarantinedRow(Config):
    """One line of `quarantine.jsonl`."""

    file: str
    line: int
    reason: str
    """A key of `REASONS`."""
    message: str
    row: dict[str, Any] | str
    """The row: an object where it is one, else its text, with U+FFFD for what is no UTF-8."""
    digest: str
    """Of the row as it was refused, by which one that was repaired is told."""
    is_cut: bool = False
    """Whether only the start is here, of a row longer than `MAX_ROW_BYTES`."""

    @property
    def is_touched(self) -> bool:
        """Whether somebody changed the row."""
        return digest_of(self.row) != self.digest


class Quarantine(Closing):
    """Writes refused rows and keeps the first ones of each reason as examples; a context manager.

    Attributes:
        examples: Masked and cut, for a page.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.examples: list[RefusedRow] = []
        self._num_refused: Counter[str] = Counter()
        self._file = path.open("wb")

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def add(
        self, file: str, line: int, reason: str, message: str, row: dict[str, Any] | str
    ) -> None:
        """Write a row, whole up to `MAX_ROW_BYTES`."""
        text = row if isinstance(row, str) else orjson.dumps(row, default=str).decode()
        is_cut = len(text.encode()) > MAX_ROW_BYTES
        if is_cut:
            row = text.encode()[:MAX_ROW_BYTES].decode("utf-8", "ignore")
        record = {
            "file": file,
            "line": line,
            "reason": reason,
            "message": message,
            "row": row,
            "digest": digest_of(row),
            "is_cut": is_cut,
        }
        self._file.write(orjson.dumps(record, default=str, option=orjson.OPT_APPEND_NEWLINE))
        self._num_refused[reason] += 1
        if self._num_refused[reason] <= _EXAMPLES_PER_REASON:
            shown = masked(text[:_LONGEST_EXAMPLE_LOOK])[:_EXAMPLE_CHARS]
            self.examples.append(
                RefusedRow(file=file, line=line, reason=reason, message=message, row=shown)
            )


def repairable(row: SourceRow) -> dict[str, Any] | str:
    """Return a row in the form in which it can be repaired: as an object, or else as text."""
    if row.values is not None and LONE_SURROGATE not in row.values:
        return row.values
    return (row.original or b"").decode("utf-8", "replace")


def digest_of(row: dict[str, Any] | str) -> str:
    """Return 16 hexadecimal digits of the row's SHA-256, the same for any order of its keys."""
    content = orjson.dumps(row, default=str, option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(content).hexdigest()[:16]


def read_quarantine(path: Path) -> Iterator[QuarantinedRow]:
    """Yield the rows of a quarantine file.

    Raises:
        DataError: It can't be read, or a line is none of a quarantine.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield _parse(path, number, line)
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror}).") from None


def _parse(path: Path, number: int, line: bytes) -> QuarantinedRow:
    try:
        return QuarantinedRow.model_validate(orjson.loads(line))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        problem = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    except orjson.JSONDecodeError as error:
        problem = f"no JSON: {error}"
    raise DataError(
        f"{path}: line {number} is no line of a quarantine ({problem}); change what stands under "
        "row and leave the rest as it is."
    )
