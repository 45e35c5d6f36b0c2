"""What every reader yields: a numbered row with its original and its values."""

import math
from typing import Any, NamedTuple, Self

import orjson

from alignflow.data_validation.reasons import RowRefused


class SourceRow(NamedTuple):
    """One row as it stands in its file: parsed, refused, or blank where it is neither."""

    line: int
    """1-based: physical line, array item, CSV record after the header, or Parquet row."""
    original: bytes | None
    """The bytes of the row; None where the format keeps no text, as in Parquet."""
    values: dict[str, Any] | None = None
    refused: RowRefused | None = None

    @property
    def is_blank(self) -> bool:
        """Whether the row is white space, to be skipped."""
        return self.values is None and self.refused is None

    @classmethod
    def of_values(cls, line: int, values: dict[str, Any], original: bytes | None = None) -> Self:
        """Return a row that came as typed values, which may hold numbers that JSON has not."""
        for name, value in values.items():
            if isinstance(value, float) and not math.isfinite(value):
                refused = RowRefused("non_finite_number", name)
                return cls(line, original, values, refused)
        return cls(line, original, values)

    def excerpt(self, num_chars: int) -> str:
        """Return the start of the row as text, with what is no UTF-8 replaced."""
        original = self.original
        if original is None:
            original = orjson.dumps(self.values, default=str)
        # A character has at most four bytes.
        return original[: 4 * num_chars].decode("utf-8", "replace")[:num_chars]
