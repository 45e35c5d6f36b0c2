"""The benchmarks run: tiny models, real jobs, on the CPU."""

import os
import subprocess
import sys
from pathlib import Path

import gpu
import pytest
import torch
from gpu import Point
from profiled_side import CATEGORIES
from results import Table

pytestmark = pytest.mark.integration

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run(script: str, *options: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / script), *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_cost_tells_where_the_time_goes(tmp_path: Path) -> None:
    options = ("--model", "tiny", "--lengths", "64", "--length", "64", "--tokens", "256")
    out = tmp_path / "cost.md"
    done = run("cost.py", *options, "--batches", "2", "--sizes", "tiny", "--write", out)
    assert done.returncode == 0, done.stdout + done.stderr
    costs, times = Table.read_all(out.read_text())
    assert [row[:3] for row in costs.rows] == [("tiny", "64", "4"), ("tiny", "64", "2")]
    assert all(float(row[4]) > 0 for row in costs.rows)
    assert times.columns[3:-1] == CATEGORIES
    for row in times.rows:
        shares = dict(zip(CATEGORIES, (int(cell.rstrip("%")) for cell in row[3:-1]), strict=True))
        # Each is rounded to a whole number.
        assert sum(shares.values()) == pytest.approx(100, abs=len(shares) / 2)
        for name in CATEGORIES:
            # A tiny model has hardly anything to multiply in its layers.
            assert shares[name] > 0 or name in ("data", "forward: matrix products"), shares


@pytest.mark.slow
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is one core")
def test_scaling_compares_the_same_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNFLOW_SLOTS_DIR", str(tmp_path / "slots"))
    options = ("--model", "tiny", "--length", "64", "--batch", "4", "--steps", "3")
    out = tmp_path / "scaling.md"
    done = run("scaling.py", *options, "--write", out)
    assert done.returncode == 0, done.stdout + done.stderr
    (table,) = Table.read_all(out.read_text())
    rows = table.rows
    assert [row[0] for row in rows] == [
        "1 process",
        "1 process",
        "2 processes, data parallel",
        "2 processes, tensor parallel",
    ]
    assert int(rows[2][1]) == int(rows[1][1]) == 2 * int(rows[0][1])
    losses = [float(row[-1]) for row in rows]
    assert losses == pytest.approx([losses[0]] * 4, abs=0.02)


@pytest.mark.slow
def test_data_is_read_by_every_side(tmp_path: Path) -> None:
    out = tmp_path / "data.md"
    options = ("--rows", "300", "30000", "--sides", "alignflow", "pandas")
    done = run("data.py", *options, "--write", out)
    assert done.returncode == 0, done.stdout + done.stderr
    (table,) = Table.read_all(out.read_text())
    assert [row[0] for row in table.rows] == ["300", "30,000"]
    done = run("data.py", *options[:2], *options[3:], "--formats", "csv", "parquet", "--write", out)
    assert done.returncode == 0, done.stdout + done.stderr
    (table,) = Table.read_all(out.read_text())
    assert [row[0] for row in table.rows][2:] == ["300 as csv", "300 as parquet"]
    for row in table.rows:
        rates_and_sizes = [int(cell.replace(",", "")) for cell in row[1:5]]
        assert all(number > 50 for number in rates_and_sizes)


@pytest.mark.slow
def test_nothing_is_lost_or_doubled_under_load(tmp_path: Path) -> None:
    out = tmp_path / "load.md"
    done = run("load.py", "--events", "20", "--pipelines", "4", "--write", out)
    assert done.returncode == 0, done.stdout + done.stderr
    fates, costs = Table.read_all(out.read_text())
    assert [row[:4] for row in fates.rows] == [
        ("event to run", "20", "0", "0"),
        ("pipeline", "4", "0", "0"),
    ]
    assert all(int(row[4]) > 50 for row in costs.rows)


@pytest.mark.slow
def test_overhead_tells_what_each_stage_costs_besides_its_job(tmp_path: Path) -> None:
    out = tmp_path / "overhead.md"
    done = run("overhead.py", "--runs", "1", "--write", out)
    assert done.returncode == 0, done.stdout + done.stderr
    stages, whole = Table.read_all(out.read_text())
    assert {"sft", "reward-model", "dpo", "evaluate-aligned"} <= {row[0] for row in stages.rows}
    assert all(float(row[1]) > 0 for row in whole.rows)


def test_gpu_refuses_a_machine_without_cuda() -> None:
    done = run("gpu.py")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        "This benchmark measures training on a CUDA device, and torch finds none here.\n"
    )


def test_the_peak_is_that_of_a_product() -> None:
    # Whatever the machine, it isn't slower than a pocket calculator nor faster than a rack.
    assert 1e7 < gpu.matrix_peak(torch.device("cpu"), size=256, repeats=3) < 1e16


@pytest.mark.slow
@pytest.mark.parametrize("stage", gpu.STAGES)
def test_gpu_measures_every_stage(stage: str, tmp_path: Path) -> None:
    # The same jobs run where torch finds a GPU.
    point = Point(stage, "tiny", length=64, num_tokens=512)
    measured = gpu.measured(point, 1e12, tmp_path, with_trl=stage == "sft")
    (cells,) = measured.rows
    row = dict(zip(measured.columns, cells, strict=True))
    assert row["stage and model"] == f"{stage} tiny"
    assert float(row["tokens/s"].replace(",", "")) > 0
    # At a peak of 1 TFLOP/s.
    assert float(row["MFU"].rstrip("%")) == pytest.approx(100 * float(row["TFLOP/s"]), abs=0.06)
    assert float(row["TFLOP/s"]) > 0
    assert (row["ratio"] == "-") == (stage != "sft")
