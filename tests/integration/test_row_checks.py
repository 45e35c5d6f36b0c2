"""Rows checked by tasks on real clusters: nothing of what is decided or written may differ."""

import os
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import pytest
from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.testing.utilities import prefect_test_harness
from shards import configs_of, make_parts_small, write_shards, written

from alignflow.data_validation.config import DatasetConfig
from alignflow.tasks.config import RowChecksConfig
from alignflow.tasks.row_checks import RowChecks

pytestmark = [pytest.mark.integration, pytest.mark.slow]


@pytest.fixture(scope="module")
def prefect_server() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=180):
        yield


@task(cache_policy=NO_CACHE)
def ingest_there(
    configs: list[DatasetConfig], output: Path, checks: RowChecks
) -> list[dict[str, bytes | str]]:
    # As in the pipeline: by a task, with an argument that can't be sent anywhere.
    return written(configs, output, checks.executor(lambda: None))


@pytest.mark.parametrize("runner", ["dask", "ray"])
def test_a_cluster_decides_as_this_process_does(
    runner: Literal["dask", "ray"],
    prefect_server: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if find_spec(f"prefect_{runner}") is None:
        pytest.skip(f"needs prefect-{runner}")
    # Ray's workers don't look where this process looks for modules.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    make_parts_small(monkeypatch, block_rows=60, part_blocks=3)
    write_shards(tmp_path / "shards", num_rows=500)
    configs = configs_of(tmp_path / "shards", max_rows=150)

    @flow
    def ingest_all() -> list[dict[str, bytes | str]]:
        checks = RowChecks(RowChecksConfig(runner=runner, num_processes=2, parts_ahead=4))
        try:
            return ingest_there.submit(configs, tmp_path / "there", checks).result()
        finally:
            checks.close()

    assert ingest_all() == written(configs, tmp_path / "here")
