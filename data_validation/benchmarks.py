"""The item texts of benchmark files, for keeping them out of training data."""

from collections.abc import Iterator

from alignflow.data_validation.config import RowLimits
from alignflow.data_validation.readers import read_rows
from alignflow.data_validation.streams import NamedFile
from alignflow.errors import DataError
from alignflow.sources import LocalFile

_ITEM_KEYS = ("question", "text", "prompt", "test_case", "instruction", "sentence")
"""Names under which benchmarks keep their items: TruthfulQA, ToxiGen, and others."""


def benchmark_texts(file: LocalFile) -> Iterator[str]:
    """Yield the item texts of a benchmark file in its own format.

    Raises:
        DataError: The file is refused, or its rows have no item under a name that is known.
    """
    for row in read_rows(NamedFile(file.path, file.uri), RowLimits()):
        if row.is_blank:
            continue
        values = {key.lower(): value for key, value in (row.values or {}).items()}
        texts = [values[key] for key in _ITEM_KEYS if isinstance(values.get(key), str)]
        if row.refused or not texts:
            raise DataError(
                f"{file.uri}: row {row.line} is no benchmark item; an item is a text under one of "
                f"the keys {', '.join(_ITEM_KEYS)}."
            )
        yield texts[0]
