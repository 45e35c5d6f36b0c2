"""The rows of a set that pass, as hashes: what is new in a version is told without writing it."""

from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alignflow.data_validation.checking import RowChecker
from alignflow.data_validation.comparison import row_hash
from alignflow.data_validation.config import DataKind, DatasetConfig
from alignflow.data_validation.ingest import readings


def accepted_rows(config: DatasetConfig, kind: DataKind, cache: Path) -> NDArray[np.uint64]:
    """Return a hash of each row that passes by itself and beside the others, sorted, [R] uint64.

    Bounds of the set as a whole, and items of benchmarks, are not looked at.

    Raises:
        DataError: A source can't be read.
    """
    found: set[int] = set()
    with RowChecker(kind, config.limits) as checker:
        for reading in readings(config, kind, cache):
            with closing(reading.check(checker)) as blocks:
                for checked in blocks:
                    drafts = (decision.draft for decision in checked.decisions())
                    found.update(row_hash(draft) for draft in drafts if draft is not None)
    return np.array(sorted(found), dtype=np.uint64)
