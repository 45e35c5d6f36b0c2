"""A set of several files, good and bad, and all that an ingest makes of it."""

import gzip
import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from alignflow.data_validation import blocks, parts, streams
from alignflow.data_validation.config import DatasetConfig, SetExpectations
from alignflow.data_validation.ingest import ingest
from alignflow.data_validation.parts import PartExecutor
from alignflow.errors import DataError

_TEXTS = ("Yes.", "No.", "yes.", "Write to jane@example.com.", "<b>bold</b>", "", "A tall tale.")


def make_parts_small(monkeypatch: pytest.MonkeyPatch, *, block_rows: int, part_blocks: int) -> None:
    """Let a small file be several parts, and a part several blocks."""
    # Lines that are read at once stay together, so few may be.
    monkeypatch.setattr(streams, "BLOCK_BYTES", 256)
    monkeypatch.setattr(blocks, "BLOCK_ROWS", block_rows)
    monkeypatch.setattr(parts, "PART_BLOCKS", part_blocks)


def write_shards(folder: Path, num_rows: int) -> None:
    """Write six files whose rows repeat and contradict those of others, some of them broken."""
    folder.mkdir()
    for number in range(6):
        draw = random.Random(number)
        lines = [
            json.dumps(
                {
                    "prompt": f"Question {draw.randrange(2 * num_rows)}?",
                    "chosen": draw.choice(_TEXTS),
                    "rejected": draw.choice(_TEXTS),
                }
            ).encode()
            for _ in range(num_rows)
        ]
        lines[draw.randrange(num_rows)] = b"{"
        text = b"\n".join(lines)
        name = f"shard-{number}.jsonl"
        if number % 2:
            (folder / f"{name}.gz").write_bytes(gzip.compress(text, mtime=0))
        else:
            (folder / name).write_bytes(text)


def configs_of(folder: Path, max_rows: int) -> list[DatasetConfig]:
    """Return ways to read the files: as a whole, in part, with what is broken or isn't there."""
    whole = DatasetConfig(sources=[str(folder)], expectations=SetExpectations(max_refused_share=1))
    broken = folder.parent / "page.jsonl"
    broken.write_text("<html>")
    absent = "/nowhere/rows.jsonl"
    return [
        whole,
        whole.replaced(max_rows=max_rows),
        # What stands after the last row that is wanted doesn't matter.
        whole.replaced(sources=[*whole.sources, absent], max_rows=max_rows),
        whole.replaced(sources=[*whole.sources, absent]),
        whole.replaced(sources=[str(folder / "shard-0.jsonl"), str(broken), str(folder)]),
    ]


def written(
    configs: Sequence[DatasetConfig], output: Path, executor: PartExecutor | None = None
) -> list[dict[str, bytes | str]]:
    """Return every file that an ingest by each config writes, and the error that it ends with."""
    return [
        _written(config, output / str(number), executor) for number, config in enumerate(configs)
    ]


def _written(
    config: DatasetConfig, output: Path, executor: PartExecutor | None
) -> dict[str, bytes | str]:
    error = ""
    try:
        ingest(config, "preference", output, executor=executor)
    except DataError as refused:
        error = str(refused)
    files = sorted(path for path in output.rglob("*") if path.is_file())
    return {**{str(path.relative_to(output)): path.read_bytes() for path in files}, "error": error}
