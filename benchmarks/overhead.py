"""What orchestration costs: the time of a pipeline, and of each stage, less that of its jobs.

    python benchmarks/overhead.py [--runs N] [--write]

A pipeline of a tiny model, with the jobs of SFT, reward model, DPO and the evaluations, runs
against a Prefect server and an MLflow server that are up; then it runs again, with nothing left to
compute.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from models import make_model
from results import Table, add_write_option, write
from servers import mlflow_server, prefect_server
from synthetic import write_demonstrations, write_pairs

from alignflow.artifacts import ArtifactStore

NUM_ROWS = 32
NUM_TOKENS = 64
ABOUT = (
    "`make bench` runs `benchmarks/overhead.py --write`: `alignflow run` of a recipe with SFT, "
    "reward model, DPO and three evaluations of a model with random weights, against servers of "
    "Prefect and MLflow on SQLite that are up. What a stage costs besides its job is the time of "
    "its Prefect task less the time that its job ran, and less the time that the job waited for "
    "another one to give the processor free, as reward model and DPO do, and the evaluations. What "
    "a run "
    "costs is the time of the whole command less that of all jobs, which follow one another. The "
    "second run finds every stage in the store. The median of the runs stands, each in a workspace "
    "of its own."
)
_STAGE = """
  precision: fp32
  max_length: 128
  global_batch_size: 8
"""


@dataclass(frozen=True)
class Reading:
    """What one run took, in seconds."""

    beside_jobs: Mapping[str, float]
    """By stage."""
    first: float
    """The whole command."""
    jobs: float
    """All jobs together."""
    second: float
    """The command once more."""


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=3)
    add_write_option(parser, "overhead")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        readings = [measure(Path(scratch) / f"run-{number}") for number in range(args.runs)]
    stages, whole = stage_table(readings), whole_table(readings)
    print(f"{stages}\n\n{whole}")
    if args.write:
        title = "What orchestration costs"
        write(args.write, title, ABOUT, [stages, whole])


def stage_table(readings: Sequence[Reading]) -> Table:
    """Return what each stage costs besides its job."""
    rows = [
        (stage, _seconds(reading.beside_jobs[stage] for reading in readings))
        for stage in readings[0].beside_jobs
    ]
    return Table(("stage", "s besides its job"), tuple(rows))


def whole_table(readings: Sequence[Reading]) -> Table:
    """Return what the whole runs took."""
    rows = (
        ("first run", _seconds(reading.first for reading in readings)),
        ("its jobs", _seconds(reading.jobs for reading in readings)),
        ("first run besides its jobs", _seconds(r.first - r.jobs for r in readings)),
        ("second run, nothing to compute", _seconds(reading.second for reading in readings)),
    )
    return Table(("", "s"), rows)


def _seconds(values: Iterator[float]) -> str:
    return f"{statistics.median(values):.1f}"


def measure(folder: Path) -> Reading:
    """Run the pipeline twice against servers of its own."""
    folder.mkdir()
    recipe = write_recipe(folder)
    with servers(folder) as environment:
        first, outcome = run(recipe, environment)
        second, _ = run(recipe, environment)
        tasks = task_seconds(environment["PREFECT_API_URL"], outcome["flow_run_id"])
    jobs, waits = job_seconds(folder / "work"), waited_seconds(folder / "work")
    beside = {stage: tasks[stage] - seconds - waits[stage] for stage, seconds in jobs.items()}
    return Reading(beside, first, sum(jobs.values()), second)


def write_recipe(folder: Path) -> Path:
    """Write model, data and a recipe whose gate lets everything pass."""
    make_model("tiny", folder / "model")
    write_demonstrations(
        folder / "demonstrations.jsonl", folder / "model", length=NUM_TOKENS, count=NUM_ROWS
    )
    write_pairs(folder / "preferences.jsonl", folder / "model", length=NUM_TOKENS, count=NUM_ROWS)
    items = [
        {"question": f"Is it so, {n}?", "mc1_targets": {"Yes": 1, "No": 0}, "mc2_targets": {}}
        for n in range(4)
    ]
    for item in items:
        item["mc2_targets"] = item["mc1_targets"]
    (folder / "truth.json").write_text(json.dumps(items), encoding="utf-8")
    recipe = folder / "tiny.yaml"
    recipe.write_text(
        f"""
name: overhead
workspace: {folder}/work
model: {{source: {folder}/model}}
data:
  demonstrations: {{sources: ["{folder}/demonstrations.jsonl"]}}
  preferences: {{sources: ["{folder}/preferences.jsonl"], held_out_share: 0.25}}
sft: {_STAGE}
reward_model: {_STAGE}
dpo: {_STAGE}
evaluation:
  precision: fp32
  suites:
    truth: {{suite: truthfulqa, data: "{folder}/truth.json"}}
  num_samples: 0
gate:
  rules:
    truthful: {{score: truth/mc2, at_least: 0.0}}
registry: {{model_name: overhead}}
""",
        encoding="utf-8",
    )
    return recipe


@contextmanager
def servers(folder: Path) -> Iterator[dict[str, str]]:
    """Start a Prefect and an MLflow server; yield the environment that names them."""
    with prefect_server(folder) as prefect, mlflow_server(folder) as mlflow:
        # What pip installs lies there compiled; so does this, as long as Python may keep it.
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        yield {**environment, "PREFECT_API_URL": prefect.url, "MLFLOW_TRACKING_URI": mlflow.url}


def run(recipe: Path, environment: Mapping[str, str]) -> tuple[float, dict[str, str]]:
    """Return the seconds of `alignflow run`, and its outcome.

    Raises:
        SystemExit: It failed.
    """
    began = time.perf_counter()
    done = subprocess.run(
        [str(Path(sys.executable).with_name("alignflow")), "run", str(recipe), "--json"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"alignflow run fails:\n{done.stderr}")
    outcome: dict[str, str] = json.loads(done.stdout)
    return seconds, outcome


def task_seconds(api_url: str, flow_run_id: str) -> dict[str, float]:
    """Return the seconds of each task of a flow run, by its stage."""
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.filters import FlowRunFilter

    with SyncPrefectClient(api_url) as client:
        runs = client.read_task_runs(
            flow_run_filter=FlowRunFilter.model_validate({"id": {"any_": [flow_run_id]}})
        )
    return {run.name.replace("_", "-"): run.total_run_time.total_seconds() for run in runs}


def job_seconds(workspace: Path) -> dict[str, float]:
    """Return the seconds of each job, by its stage."""
    manifests = [r.manifest for r in ArtifactStore(str(workspace / "artifacts")).records.read()]
    seconds = {}
    for folder in sorted(workspace.glob("jobs/*/handle.json")):
        stage, _, start = folder.parent.name.rpartition("-")
        [manifest] = [each for each in manifests if each.key.startswith(start)]
        seconds[stage] = float(manifest.details["seconds"])
    return seconds


def waited_seconds(workspace: Path) -> dict[str, float]:
    """Return how long each job waited for a slot, by its stage.

    A job's specification is written when it is submitted, its handle for the last time when it has
    its slot.
    """
    waited = {}
    for handle in sorted(workspace.glob("jobs/*/handle.json")):
        log = (handle.parent / "log" / "launcher.txt").read_text(encoding="utf-8")
        submitted = handle.with_name("job.json").stat().st_mtime
        seconds = handle.stat().st_mtime - submitted if "waiting for" in log else 0.0
        waited[handle.parent.name.rpartition("-")[0]] = seconds
    return waited


if __name__ == "__main__":
    main()
