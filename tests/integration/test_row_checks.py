"""Rows checked by tasks on real clusters: nothing of what is decided or written may differ."""

import gzip
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Literal
from uuid import UUID

import pytest
from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.runtime import flow_run
from prefect.testing.utilities import prefect_test_harness

from alignflow.data_validation import blocks, parts
from alignflow.data_validation.config import DatasetConfig, SetExpectations
from alignflow.data_validation.ingest import ingest
from alignflow.errors import DataError
from alignflow.tasks.config import RowChecksConfig
from alignflow.tasks.row_checks import RowChecks

pytestmark = pytest.mark.integration

ANY_SHARE = SetExpectations(max_refused_share=1)
TEXTS = ("Yes.", "No.", "yes.", "Write to jane@example.com.", "<b>bold</b>", "", "A tall tale.")


@pytest.fixture(scope="module")
def prefect_server() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=180):
        yield


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of files whose rows repeat and contradict those of others; some are broken."""
    folder = tmp_path_factory.mktemp("shards")
    for number in range(6):
        draw = random.Random(number)
        lines = [
            json.dumps(
                {
                    "prompt": f"Question {draw.randrange(900)}?",
                    "chosen": draw.choice(TEXTS),
                    "rejected": draw.choice(TEXTS),
                }
            ).encode()
            for _ in range(500)
        ]
        lines[draw.randrange(500)] = b"{"
        text = b"\n".join(lines)
        name = f"shard-{number}.jsonl"
        if number % 2:
            (folder / f"{name}.gz").write_bytes(gzip.compress(text, mtime=0))
        else:
            (folder / name).write_bytes(text)
    return folder


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every file be several parts, and every part several blocks."""
    monkeypatch.setattr(blocks, "BLOCK_ROWS", 60)
    monkeypatch.setattr(parts, "PART_BLOCKS", 3)


def written(
    config: DatasetConfig, output: Path, checks: RowChecks | None = None
) -> dict[str, bytes | str]:
    """Return every file that an ingest writes, and the error that it ends with."""
    error = ""
    try:
        ingest(
            config,
            "preference",
            output,
            executor=checks.executor(lambda: None) if checks else None,
        )
    except DataError as refused:
        error = str(refused).replace(str(output), "")
    files = sorted(path for path in output.rglob("*") if path.is_file())
    return {**{str(path.relative_to(output)): path.read_bytes() for path in files}, "error": error}


@task(cache_policy=NO_CACHE)
def ingest_there(config: DatasetConfig, output: Path, checks: RowChecks) -> dict[str, bytes | str]:
    # As in the pipeline: by a task, with an argument that can't be sent anywhere.
    return written(config, output, checks)


def written_by_a_flow(
    configs: list[DatasetConfig], folder: Path, row_checks: RowChecksConfig
) -> tuple[list[dict[str, bytes | str]], int]:
    """Return what a flow writes that checks rows on a cluster, and how many tasks checked them."""

    @flow
    def ingest_all() -> tuple[list[dict[str, bytes | str]], str]:
        checks = RowChecks(row_checks)
        try:
            futures = [
                ingest_there.submit(config, folder / str(number), checks)
                for number, config in enumerate(configs)
            ]
            return [future.result() for future in futures], str(flow_run.id)
        finally:
            checks.close()

    outcomes, run_id = ingest_all()
    return outcomes, num_tasks(run_id, "check-rows")


def num_tasks(run_id: str, name: str) -> int:
    """Return how many tasks of a name the Prefect server knows of a flow run."""
    with get_client(sync_client=True) as client:
        runs = client.read_task_runs(
            flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[UUID(run_id)]))
        )
    return sum(run.name.startswith(name) for run in runs)


@pytest.mark.parametrize("runner", ["dask", pytest.param("ray", marks=pytest.mark.slow)])
def test_a_cluster_decides_as_this_process_does(
    runner: Literal["dask", "ray"], prefect_server: None, shards: Path, tmp_path: Path
) -> None:
    whole = DatasetConfig(sources=[str(shards)], expectations=ANY_SHARE)
    broken = tmp_path / "page.jsonl"
    broken.write_text("<html>")
    configs = [
        whole,
        whole.replaced(max_rows=200),
        # What stands after the error, or after the last row that is wanted, doesn't matter.
        whole.replaced(sources=[str(broken), str(shards)]),
        whole.replaced(sources=[*whole.sources, "/nowhere/*.jsonl"], max_rows=100),
        whole.replaced(sources=[*whole.sources, "/nowhere/*.jsonl"]),
    ]
    here = [written(config, tmp_path / f"here-{number}") for number, config in enumerate(configs)]
    assert [bool(each["error"]) for each in here] == [False, False, True, False, True]
    assert len({*here[0]}) > 5

    row_checks = RowChecksConfig(runner=runner, num_processes=2, parts_ahead=4)
    there, num_parts = written_by_a_flow(configs, tmp_path / "there", row_checks)
    assert there == here
    # Each file of 500 rows is at least three parts.
    assert num_parts > 6 * 3
