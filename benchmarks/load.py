"""Whether a Prefect server loses or doubles anything under load, and what that costs it.

    python benchmarks/load.py [--events N] [--pipelines N] [--write]

First a burst of events, each of them posted twice: every one has to start one run. Then pipelines
whose stages are trivial, each of them asked for twice: a worker runs them, two at once, and every
stage has to run once.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
from load_flow import STAGES, run_trivial_pipeline
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName
from prefect.client.schemas.objects import FlowRun
from prefect.deployments.runner import RunnerDeployment
from prefect.events import DeploymentEventTrigger, ResourceSpecification
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.types.entrypoint import EntrypointType
from results import Table, add_write_option, options_given, write
from servers import Server, prefect_server

from alignflow.jobs.processes import die_with_parent
from alignflow.tasks.deployment.apply import apply_pools
from alignflow.tasks.deployment.config import QueueConfig, WorkPoolConfig
from alignflow.tasks.events import emit
from alignflow.tasks.prefect_api import prefect_client

CLIENTS = 8
EVENT = "alignflow.preferences.landed"
RESOURCE = "alignflow.preferences.load"
TIMEOUT_S = 600.0
ABOUT = (
    "`benchmarks/load.py --write`, with {options}, against a Prefect server on SQLite. "
    "{events} events come in a burst from 8 clients, each of them twice under one id; an "
    "automation starts a run for each. Then 8 clients ask for {pipelines} pipelines, each of them "
    "twice under one key, and a worker runs them, two at once and each in a process of its own; a "
    "pipeline has three stages that append a line to a file. Latency is that of a request for the "
    "number of runs, made 5 times a second meanwhile by another client; memory is the resident "
    "set of the server's process."
)


@dataclass
class Watch:
    """What a server took meanwhile."""

    latencies_s: list[float] = field(default_factory=list)
    memory_bytes: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Burst:
    """What became of the events."""

    sent: int
    lost: int
    doubled: int
    delays_s: Sequence[float]
    """Between the post and the start of the run, by the clock of this machine."""
    watch: Watch


@dataclass(frozen=True)
class Queue:
    """What became of the pipelines."""

    asked: int
    lost: int
    doubled: int
    seconds: float
    """From the start of the worker to the end of the last one."""
    run_seconds: Sequence[float]
    """Of each from its process's first word to its end."""
    watch: Watch


def main() -> None:
    """Measure, print, and fail where something was lost or doubled."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--events", type=int, default=200)
    parser.add_argument("--pipelines", type=int, default=50)
    add_write_option(parser, "load")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, loaded_server(Path(scratch)) as server:
        burst = send_events(server, args.events)
        queue = run_pipelines(server, Path(scratch), args.pipelines)
    tables = [fate_table(burst, queue), cost_table(burst, queue)]
    print("\n\n".join(map(str, tables)))
    if args.write:
        about = ABOUT.format(
            options=options_given(parser, args, but=()), events=burst.sent, pipelines=queue.asked
        )
        write(args.write, "Prefect under load", about, tables)
    if burst.lost or burst.doubled or queue.lost or queue.doubled:
        raise SystemExit("something was lost or doubled")


def fate_table(burst: Burst, queue: Queue) -> Table:
    """Return how many there were, and were lost and doubled."""
    return Table(
        ("", "asked for", "lost", "doubled", "median s", "p95 s", "all, s"),
        (
            (
                "event to run",
                *map(str, (burst.sent, burst.lost, burst.doubled)),
                f"{statistics.median(burst.delays_s):.1f}",
                f"{percentile(burst.delays_s, 95):.1f}",
                f"{max(burst.delays_s):.1f}",
            ),
            (
                "pipeline",
                *map(str, (queue.asked, queue.lost, queue.doubled)),
                f"{statistics.median(queue.run_seconds):.1f}",
                f"{percentile(queue.run_seconds, 95):.1f}",
                f"{queue.seconds:.0f}",
            ),
        ),
    )


def cost_table(burst: Burst, queue: Queue) -> Table:
    """Return what the server's answers took, and its memory."""
    rows = []
    for name, watch in (("events", burst.watch), ("pipelines", queue.watch)):
        milliseconds = [1000 * seconds for seconds in watch.latencies_s]
        rows.append(
            (
                name,
                f"{statistics.median(milliseconds):.0f}",
                f"{percentile(milliseconds, 95):.0f}",
                f"{watch.memory_bytes[0] / 2**20:.0f}",
                f"{max(watch.memory_bytes) / 2**20:.0f}",
            )
        )
    columns = ("", "latency, median ms", "p95 ms", "memory before, MiB", "most, MiB")
    return Table(columns, tuple(rows))


def percentile(values: Sequence[float], percent: int) -> float:
    """Return the smallest value that so many per cent don't exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]


@contextmanager
def loaded_server(folder: Path) -> Iterator[Server]:
    """Start a server that holds the two deployments, and make it the one that is talked to."""
    with prefect_server(folder) as server, temporary_settings({PREFECT_API_URL: server.url}):
        queues = [
            QueueConfig(name="events", priority=2),
            QueueConfig(name="pipelines", priority=1, concurrency_limit=2),
        ]
        with prefect_client() as client:
            list(apply_pools(client, [WorkPoolConfig(name="load", queues=queues)]))
        trigger = DeploymentEventTrigger(
            name="landed",
            expect={EVENT},
            match=ResourceSpecification({"prefect.resource.id": RESOURCE}),
            for_each={"alignflow.digest"},
            within=timedelta(seconds=60),
            parameters={"number": "{{ event.payload.number }}"},
        )
        deploy("on-event", folder, "events", triggers=[trigger])
        deploy("queued", folder, "pipelines")
        yield server


def deploy(name: str, folder: Path, queue: str, **options: Any) -> None:
    """Deploy the trivial pipeline."""
    deployment = run_trivial_pipeline.to_deployment(
        name,
        parameters={"folder": str(folder), "number": -1},
        work_pool_name="load",
        work_queue_name=queue,
        entrypoint_type=EntrypointType.MODULE_PATH,
        **options,
    )
    assert isinstance(deployment, RunnerDeployment)
    deployment.apply()


def send_events(server: Server, count: int) -> Burst:
    """Post each event twice, and wait for the runs that they start."""
    posted: dict[int, float] = {}

    def post(number: int) -> None:
        posted.setdefault(number, time.time())
        key, label = f"load {number}", {"alignflow.digest": f"{number:064x}"}
        if not emit(EVENT, RESOURCE, {"number": number}, key=key, labels=label):
            raise SystemExit(f"Prefect did not take event {number}")

    with watched(server) as watch:
        twice_at_once(post, count)
        runs = wait_for_runs("on-event", lambda found: len(found) >= count)
    numbers = Counter(int(run.parameters["number"]) for run in runs)
    return Burst(
        sent=count,
        lost=count - len(numbers),
        doubled=sum(numbers.values()) - len(numbers),
        delays_s=[
            run.created.timestamp() - posted[int(run.parameters["number"])]
            for run in runs
            if run.created is not None
        ],
        watch=watch,
    )


def run_pipelines(server: Server, folder: Path, count: int) -> Queue:
    """Ask for each pipeline twice, and have a worker run them all."""
    with prefect_client() as client:
        deployment = client.read_deployment_by_name("trivial/queued").id

    def ask(number: int) -> None:
        with prefect_client() as client:
            client.create_flow_run_from_deployment(
                deployment,
                parameters={"folder": str(folder), "number": number},
                idempotency_key=f"load {number}",
            )

    with watched(server) as watch:
        twice_at_once(ask, count)
        began = time.monotonic()
        with worker(server, folder):
            runs = wait_for_runs(
                "queued", lambda found: bool(found) and all(_has_ended(run) for run in found)
            )
        seconds = time.monotonic() - began
    lines = Counter((folder / "ran.txt").read_text(encoding="utf-8").splitlines())
    wanted = {f"{number} {stage}" for number in range(count) for stage in STAGES}
    return Queue(
        asked=count,
        lost=len(wanted - lines.keys()),
        doubled=len(runs) - count + sum(lines.values()) - len(lines),
        seconds=seconds,
        run_seconds=[run.total_run_time.total_seconds() for run in runs],
        watch=watch,
    )


def twice_at_once(call: Callable[[int], None], count: int) -> None:
    """Call it twice with each number, from several threads."""
    numbers = [number for number in range(count) for _ in range(2)]
    with ThreadPoolExecutor(CLIENTS) as clients:
        # In copies of this thread's context, which holds Prefect's settings.
        for made in [clients.submit(copy_context().run, call, number) for number in numbers]:
            made.result()


def _has_ended(run: FlowRun) -> bool:
    return run.state is not None and run.state.is_final()


def wait_for_runs(deployment: str, is_done: Callable[[list[FlowRun]], bool]) -> list[FlowRun]:
    """Return the runs of a deployment when they are what is waited for, and 5 s later."""
    deadline = time.monotonic() + TIMEOUT_S
    while not is_done(found := runs_of(deployment)):
        if time.monotonic() > deadline:
            raise SystemExit(f"after {TIMEOUT_S:.0f} s there are {len(found)} runs of {deployment}")
        time.sleep(0.5)
    time.sleep(5)  # whatever was doubled would come by then
    return runs_of(deployment)


def runs_of(deployment: str) -> list[FlowRun]:
    """Return all runs of a deployment."""
    wanted = DeploymentFilter(name=DeploymentFilterName(any_=[deployment]))
    found: list[FlowRun] = []
    with prefect_client() as client:
        while page := client.read_flow_runs(deployment_filter=wanted, limit=200, offset=len(found)):
            found += page
    return found


@contextmanager
def worker(server: Server, folder: Path) -> Iterator[None]:
    """Run a worker of the queue of pipelines."""
    prefect = str(Path(sys.executable).with_name("prefect"))
    here = str(Path(__file__).parent)
    environment = {
        **os.environ,
        "PREFECT_API_URL": server.url,
        "PREFECT_HOME": str(folder / f"worker-{uuid4().hex[:6]}"),
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "PYTHONPATH": os.pathsep.join([here, os.environ.get("PYTHONPATH", here)]),
    }
    command = [prefect, "worker", "start", "--pool", "load", "--work-queue", "pipelines"]
    with (folder / "worker.txt").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--type", "process"],
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
    try:
        yield
    finally:
        process.kill()
        process.wait()


@contextmanager
def watched(server: Server) -> Iterator[Watch]:
    """Ask the server 5 times a second, and look at its memory."""
    watch, is_over = Watch(), threading.Event()
    process = psutil.Process(server.pid)

    def look() -> None:
        with SyncPrefectClient(server.url) as client:
            while not is_over.wait(0.2):
                watch.memory_bytes.append(process.memory_info().rss)
                began = time.perf_counter()
                client.request("POST", "/flow_runs/count", json={})
                watch.latencies_s.append(time.perf_counter() - began)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield watch
    finally:
        is_over.set()
        thread.join()


if __name__ == "__main__":
    main()
