"""The data gate beside plain tools: rows a second and memory, by the number of rows.

    python benchmarks/data.py [--rows N …] [--large] [--formats FORMAT …] [--decontaminate FILE …]
                              [--write]

Every side reads the same clean pairs of about 1 KB from the same file, in a process of its own.
The memory is the largest resident set of the process and its children together, shared pages
counted for each of them.
"""

import argparse
import csv
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import orjson
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from results import Table, add_write_option, update
from synthetic import WORDS
from trl_environment import trl_python
from trl_settings import TRL

EXAMPLE = Path(__file__).parents[1] / "examples" / "truthfulness.csv"
SIZES = (10_000, 100_000, 1_000_000)
LARGE = 5_000_000
NUM_SENTENCES = 5000
SAMPLE_SECONDS = 0.05
GROUP_ROWS = 50_000
PARQUET_SCHEMA = pa.schema([(name, pa.string()) for name in ("prompt", "chosen", "rejected")])

ABOUT = (
    "`make bench` runs `benchmarks/data.py --write`: `alignflow data check` with all row checks, "
    "duplicates and contamination; `datasets` to a pandas frame that pandera checks for types, "
    "lengths, equal answers and duplicates; and what TRL's DPOTrainer does with the rows before "
    "it tokenises them. Clean pairs of 1 KB, as JSON lines where no other format is named; "
    "imports aren't counted, peak memory is that of all processes of a side. `--large` adds five "
    "million rows."
)


class Reading(NamedTuple):
    """What one side took for one file."""

    rows_per_second: float
    peak_bytes: int


def main() -> None:
    """Let every side read every file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--large", action="store_true", help=f"also {LARGE} rows, some 5 GB")
    parser.add_argument("--formats", nargs="+", default=["jsonl"], choices=FORMATS)
    parser.add_argument("--sides", nargs="+", default=["alignflow", "pandas", "trl"])
    parser.add_argument("--decontaminate", nargs="+", default=[str(EXAMPLE)])
    add_write_option(parser, "data")
    args = parser.parse_args()
    rows = []
    sizes = [*args.rows, *([LARGE] if args.large else [])]
    for num_rows, ending in itertools.product(sizes, args.formats):
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / f"pairs.{ending}"
            FORMATS[ending](file, pairs(num_rows))
            cells = [f"{num_rows:,}" if ending == "jsonl" else f"{num_rows:,} as {ending}"]
            for side in args.sides:
                found = read(side, file, num_rows, args.decontaminate)
                cells += [f"{found.rows_per_second:,.0f}", f"{found.peak_bytes / 1e6:,.0f}"]
        print(*cells, sep="  ", flush=True)
        rows.append(tuple(cells))
    columns = [f"{side} {unit}" for side in args.sides for unit in ("rows/s", "MB")]
    if args.write:
        table = Table(("rows", *columns), tuple(rows))
        update(args.write, "The data gate beside plain tools", ABOUT, table)


def pairs(num_rows: int) -> Iterator[dict[str, str]]:
    """Yield clean pairs of about 1 KB, no two with the same prompt."""
    draw = random.Random(num_rows)
    words = WORDS.split()
    sentences = [
        f"{' '.join(draw.choices(words, k=draw.randint(8, 16))).capitalize()}."
        for _ in range(NUM_SENTENCES)
    ]
    for number in range(num_rows):
        drawn = draw.choices(sentences, k=17)
        yield {
            "prompt": f"Question {number}: {' '.join(drawn[:3])}",
            "chosen": " ".join(drawn[3:10]),
            "rejected": " ".join(drawn[10:]),
        }


def write_json_lines(path: Path, rows: Iterable[dict[str, str]]) -> None:
    """Write rows as JSON lines."""
    with path.open("wb") as file:
        file.writelines(orjson.dumps(row) + b"\n" for row in rows)


def write_csv(path: Path, rows: Iterable[dict[str, str]]) -> None:
    """Write rows as CSV with a header."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ("prompt", "chosen", "rejected"))
        writer.writeheader()
        writer.writerows(rows)


def write_parquet(path: Path, rows: Iterable[dict[str, str]]) -> None:
    """Write rows as Parquet, in groups of so many rows."""
    rows = iter(rows)
    with pq.ParquetWriter(path, PARQUET_SCHEMA) as writer:
        while group := list(itertools.islice(rows, GROUP_ROWS)):
            writer.write_table(pa.Table.from_pylist(group, PARQUET_SCHEMA))


FORMATS = {"jsonl": write_json_lines, "csv": write_csv, "parquet": write_parquet}


def read(side: str, file: Path, num_rows: int, benchmarks: list[str]) -> Reading:
    """Let a side read a file in a process of its own.

    Raises:
        SystemExit: The side fails, or doesn't find every row good.
    """
    python = trl_python(TRL) if side == "trl" else Path(sys.executable)
    script = Path(__file__).with_name("data_side.py")
    environment = {
        **os.environ,
        "HF_DATASETS_CACHE": str(file.with_name(f"{side}-cache")),
        "HF_DATASETS_OFFLINE": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    }
    with (file.with_name("log.txt")).open("w+") as log:
        process = psutil.Popen(
            [str(python), str(script), side, str(file), *benchmarks],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        peak = 0
        while process.poll() is None:
            peak = max(peak, _resident(process))
            time.sleep(SAMPLE_SECONDS)
        log.seek(0)
        if process.returncode:
            raise SystemExit(f"{side} fails with {num_rows} rows:\n{log.read()}")
    found = json.loads(process.stdout.read().splitlines()[-1])
    if found["rows"] != num_rows:
        raise SystemExit(f"{side} finds {found['rows']} of {num_rows} rows good")
    return Reading(num_rows / found["seconds"], peak)


def _resident(process: psutil.Process) -> int:
    """Return the bytes that a process and those it has started hold now."""
    total = 0
    try:
        for each in (process, *process.children(recursive=True)):
            total += each.memory_info().rss
    except psutil.NoSuchProcess:
        pass
    return total


if __name__ == "__main__":
    main()
