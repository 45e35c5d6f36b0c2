"""`python data_side.py SIDE FILE [BENCHMARK…]`: reads a file of pairs, and says how long it took.

Runs in the environment of the side; the time is that of the reading, without the imports. `trl`
does what DPOTrainer does with pairs of texts before it tokenises them.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

Read = Callable[[], int]
LOADERS = {".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}


def alignflow_side(file: str, benchmarks: list[str]) -> Read:
    """Return what decides on every row, as `alignflow data check` does."""
    from alignflow.data_validation.benchmarks import benchmark_texts
    from alignflow.data_validation.check import check_file
    from alignflow.sources import fetch_file

    def read() -> int:
        with tempfile.TemporaryDirectory() as cache:
            items = [
                text for uri in benchmarks for text in benchmark_texts(fetch_file(uri, Path(cache)))
            ]
        return check_file(Path(file), "preference", decontaminate=items).counts["accept"]

    return read


def pandas_side(file: str, _: list[str]) -> Read:
    """Return what loads the rows with datasets and validates them as one pandas frame."""
    import pandera.pandas as pa
    from datasets import load_dataset

    text = pa.Column(str, pa.Check.str_length(1, 32768))
    schema = pa.DataFrameSchema(
        {"prompt": text, "chosen": text, "rejected": text},
        checks=pa.Check(lambda frame: frame["chosen"] != frame["rejected"]),
        unique=["prompt", "chosen", "rejected"],
    )

    def read() -> int:
        frame = load_dataset(loader_of(file), data_files=file, split="train").to_pandas()
        return len(schema.validate(frame, lazy=True))

    return read


def trl_side(file: str, _: list[str]) -> Read:
    """Return what loads the rows and appends the end-of-sequence token to the answers."""
    from datasets import load_dataset

    def with_end(row: dict[str, str]) -> dict[str, str]:
        return row | {name: row[name] + "<|im_end|>" for name in ("chosen", "rejected")}

    def read() -> int:
        rows = load_dataset(loader_of(file), data_files=file, split="train").map(with_end)
        return len(rows)

    return read


def loader_of(file: str) -> str:
    """Return what datasets calls the format of a file."""
    return LOADERS[Path(file).suffix]


SIDES = {"alignflow": alignflow_side, "pandas": pandas_side, "trl": trl_side}


def main() -> None:
    """Read, and print the number of rows and the seconds as JSON."""
    side, file, *benchmarks = sys.argv[1:]
    read = SIDES[side](file, benchmarks)
    began = time.perf_counter()
    num_rows = read()
    print(json.dumps({"rows": num_rows, "seconds": time.perf_counter() - began}))


if __name__ == "__main__":
    main()
