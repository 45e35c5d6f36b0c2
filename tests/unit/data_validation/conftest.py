"""What the tests of this package share: files, records and verdicts made in one line."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest

from alignflow.data_validation.check import check_file
from alignflow.data_validation.config import DataKind, RowLimits
from alignflow.data_validation.report import FileReport
from alignflow.data_validation.streams import NamedFile

MakeFile = Callable[[str, bytes], NamedFile]
CheckRows = Callable[..., FileReport]


@pytest.fixture
def make_file(tmp_path: Path) -> MakeFile:
    """Write bytes under a name."""

    def make(name: str, content: bytes) -> NamedFile:
        path = tmp_path / name
        path.write_bytes(content)
        return NamedFile(path, name)

    return make


@pytest.fixture
def check_rows(make_file: MakeFile) -> CheckRows:
    """Check rows as a JSON lines file."""

    def check(
        rows: Sequence[dict[str, Any] | bytes],
        kind: DataKind = "preference",
        limits: RowLimits | None = None,
        **arguments: Any,
    ) -> FileReport:
        lines = [row if isinstance(row, bytes) else orjson.dumps(row) for row in rows]
        file = make_file("rows.jsonl", b"".join(line + b"\n" for line in lines))
        return check_file(file.path, kind, limits, **arguments)

    return check
