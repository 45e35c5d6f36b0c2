"""The faults: what strikes, at which moment, and who puts it right.

Each strikes what is seen to be there just before, and returns the moment in words.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Literal

from prefect.client.orchestration import get_client
from prefect.states import Cancelling
from prefect_server import wait_for

from alignflow.config import as_yaml
from alignflow.jobs.finding import find_job
from alignflow.jobs.processes import Process, read_process
from alignflow.jobs.run_folder import RunFolder
from alignflow.jobs.spec import JobStatus
from alignflow.tasks.janitor import sweep
from alignflow.tasks.starting import start_pipeline
from chaos.clock import Clock
from chaos.scene import Scene, supervisor_and_ranks

Strike = Callable[[Scene, Random], str]
Helper = Literal["itself", "the janitor", "a person"]

NUM_STEPS = 120
"""Training steps of the stage that most faults strike."""
CHECKPOINT_EVERY = 10

_STRUCK_S = 60.0


@dataclass(frozen=True)
class Fault:
    """One fault, and what is expected of the run that it strikes."""

    name: str
    """As the table has it."""
    strike: Strike
    helper: Helper = "itself"
    """Who puts it right: the run itself, the janitor, or a person who starts the recipe again."""
    attempts: Mapping[str, int] = field(default_factory=dict)
    """How often the job of a stage is started, where that is more than once."""
    outcome: str = "goes on by itself"
    """What becomes of it, in the table's words."""
    num_ranks: int = 1
    most_repeated: int = CHECKPOINT_EVERY
    """Training steps that a job which is started again may take a second time."""
    starts_itself: bool = False
    """Whether the fault is in how, or before, the run is started."""
    on_s3: bool = False
    small_disk: str | None = None
    """Folder of the workspace that lies on a file system of a few megabytes."""
    needs_compiler: bool = False
    leaves_tasks_open: bool = False
    """Whether Prefect never hears of the end of some tasks, but by the janitor."""
    is_short: bool = False
    """Whether it is one of the few that `make test` runs too."""

    @property
    def slug(self) -> str:
        """The name as part of other names."""
        return self.name.replace(" ", "-").replace(",", "")


# -- moments ---------------------------------------------------------------------------------------


def reach_step(scene: Scene, random: Random, first: int = 5) -> tuple[RunFolder, str]:
    """Wait until DPO has taken a random number of its steps; its job runs then."""
    step = random.randrange(first, NUM_STEPS - 20)
    folder = scene.job("dpo")
    wait_for(lambda: scene.step("dpo") >= step, 180)
    job = find_job(folder)
    assert job is not None
    assert job.status() == "running", "the job had ended before the fault"
    return folder, f"DPO, step {scene.step('dpo')} of {NUM_STEPS}"


def reach_evaluation(scene: Scene, random: Random) -> tuple[RunFolder, str]:
    """Wait until the aligned model is evaluated, and some time more."""
    folder = scene.job("evaluate-aligned")
    seconds = random.uniform(0, 4)
    time.sleep(seconds)
    job = find_job(folder)
    assert job is not None
    assert job.status() == "running", "the job had ended before the fault"
    return folder, f"evaluation, after {seconds:.1f} s"


Moment = Callable[[Scene, Random], tuple[RunFolder, str]]


def kill(process: Process, number: signal.Signals = signal.SIGKILL) -> None:
    """End a process that lives."""
    assert process.is_alive(), f"process {process.pid} was gone before the fault"
    process.send(number)
    wait_for(lambda: not process.is_alive(), _STRUCK_S)


# -- strikes ---------------------------------------------------------------------------------------


def kill_flow(moment: Moment) -> Strike:
    """Kill the process of the flow."""

    def strike(scene: Scene, random: Random) -> str:
        _, at = moment(scene, random)
        kill(scene.flow_process())
        return at

    return strike


def end_worker(number: signal.Signals) -> Strike:
    """End the worker, and start another when its flow is gone too."""

    def strike(scene: Scene, random: Random) -> str:
        _, at = reach_step(scene, random)
        flow = scene.flow_process()
        scene.stack.worker.send(number)
        wait_for(lambda: not flow.is_alive(), _STRUCK_S)
        scene.stack.worker.start()
        return at

    return strike


def server_away(server: Literal["prefect", "mlflow", "s3_process"], moment: Moment) -> Strike:
    """Kill a server, and start it again some seconds later."""

    def strike(scene: Scene, random: Random) -> str:
        _, at = moment(scene, random)
        process = getattr(scene.stack, server)
        assert process.answers(), "the server was away before the fault"
        process.kill()
        assert not process.answers()
        seconds = random.uniform(3, 20)
        time.sleep(seconds)
        process.start()
        return f"{at}, for {seconds:.0f} s and its start"

    return strike


def kill_ranks(which: Literal["one", "all", "supervisor"]) -> Strike:
    """Kill one training rank, all with their supervisor, or the supervisor alone."""

    def strike(scene: Scene, random: Random) -> str:
        folder, at = reach_step(scene, random)
        supervisor, ranks = supervisor_and_ranks(folder)
        if which == "supervisor":
            kill(supervisor)
        elif which == "one":
            kill(random.choice(ranks))
        else:
            for process in (supervisor, *ranks):
                process.send(signal.SIGKILL)
        wait_for(lambda: not any(each.is_alive() for each in (supervisor, *ranks)), _STRUCK_S)
        return at

    return strike


def fill_disk(moment: Moment) -> Strike:
    """Fill the small file system that a folder of the workspace lies on; a person empties it."""

    def strike(scene: Scene, random: Random) -> str:
        folder = scene.disk
        assert folder is not None
        _, at = moment(scene, random)
        ballast = folder / "ballast"
        with suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        free = shutil.disk_usage(folder).free
        assert free < 4096, f"{free} bytes were still free"
        scene.wait_for_state("Failed")
        message = str(scene.state().message)
        assert "full" in message or "No space left" in message, message
        ballast.unlink()
        return at

    return strike


def damage_checkpoint(scene: Scene, random: Random) -> str:
    """Flip a bit in the newest checkpoint, and kill the job so that it has to be read."""
    folder, at = reach_step(scene, random, first=3 * CHECKPOINT_EVERY)
    supervisor, ranks = supervisor_and_ranks(folder)
    for process in (supervisor, *ranks):
        process.send(signal.SIGKILL)
    wait_for(lambda: not any(each.is_alive() for each in (supervisor, *ranks)), _STRUCK_S)
    newest = max(marker.parent for marker in folder.checkpoints.glob("step-*/complete"))
    flip_bit(max(newest.glob("*.distcp"), key=lambda path: path.stat().st_size), random)
    scene.expect_in_log = (folder.rank_log(0), f"{newest} is damaged")
    return f"{at}, checkpoint of {newest.name}"


def damage_artifact(kind: str) -> Strike:
    """Flip a bit in an artifact that a later stage reads, before the run comes there."""

    def strike(scene: Scene, random: Random) -> str:
        store = scene.store
        [manifest] = [r.manifest for r in store.records.read() if r.manifest.kind == kind]
        folder = Path(store.get(manifest.digest).uri.removeprefix("file://"))
        largest = max(folder.glob("*.safetensors"), key=lambda path: path.stat().st_size)
        flip_bit(largest, random)
        assert store.find(manifest.key) is None, "the damage was not seen"
        scene.start()
        return f"before the run, {kind}/{largest.name}"

    return strike


def flip_bit(path: Path, random: Random) -> None:
    """Change one bit of a file in place, wherever in its last half."""
    content = bytearray(path.read_bytes())
    place = random.randrange(len(content) // 2, len(content))
    content[place] ^= 1 << random.randrange(8)
    path.chmod(0o644)
    path.write_bytes(bytes(content))


def set_clock_of_files(seconds: float) -> Strike:
    """Have the job's heartbeat, handle and metrics be of another hour, as after a jump."""

    def strike(scene: Scene, random: Random) -> str:
        folder, at = reach_step(scene, random)
        then = time.time() + seconds
        for path in (folder.path / "heartbeat", folder.handle, folder.metrics):
            os.utime(path, (then, then))
        return at

    return strike


def set_clock(seconds: int) -> Strike:
    """Set the clock of the worker, the flow and the job; the servers' goes on as it was."""

    def strike(scene: Scene, random: Random) -> str:
        clock = Clock.made_in(scene.workspace)
        scene.stack.worker.live_by(clock)
        scene.start()
        _, at = reach_step(scene, random)
        clock.set(seconds)
        wait_for(lambda: _is_off(scene, seconds), _STRUCK_S)
        return at

    return strike


def _is_off(scene: Scene, seconds: int) -> bool:
    """Whether the clock that the job tells the time by is off by about so much."""
    told: float = scene.training_rows("dpo")[-1]["time"]
    return abs(told - time.time() - seconds) < 600


def trigger_at_once(scene: Scene, random: Random) -> str:
    """Start the same recipe for the same reason from several clients at the same moment."""
    barrier = threading.Barrier(8)
    key = f"{scene.stack.mark} {scene.name} at once"

    def trigger() -> str:
        barrier.wait()
        return start_pipeline(scene.recipe, key=key, tags=[scene.name])

    with ThreadPoolExecutor(8) as clients:
        # In copies of this thread's context, which holds Prefect's settings.
        made = [clients.submit(copy_context().run, trigger) for _ in range(8)]
        assert len({each.result() for each in made}) == 1
    return "8 clients at once"


def run_beside(scene: Scene, random: Random) -> str:
    """Run the recipe from a terminal too, in the same workspace, while the worker runs it."""
    _, at = reach_step(scene, random)
    recipe = scene.workspace / "beside.yaml"
    recipe.write_text(as_yaml(scene.recipe), encoding="utf-8")
    command = [sys.executable, "-c", "from alignflow.cli import main; main()", "run", str(recipe)]
    done = subprocess.run(
        [*command, "--json"], cwd=scene.workspace, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["stages"]["dpo"] == "reused"
    return at


def cancel(moment: Moment) -> Strike:
    """Cancel the run, as on Prefect's page."""

    def strike(scene: Scene, random: Random) -> str:
        folder, at = moment(scene, random)
        flow = scene.flow_process()
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(scene.run.id, Cancelling())
        scene.wait_for_state("Cancelled")
        wait_for(lambda: not flow.is_alive(), _STRUCK_S)
        job = find_job(folder)
        assert job is not None
        assert job.status() is JobStatus.CANCELLED
        assert scene.left_behind() == {}
        return at

    return strike


def cancel_early(scene: Scene, random: Random) -> str:
    """Cancel the run in its first stages, which are no jobs."""
    flow = scene.flow_process()
    seconds = random.uniform(0, 1)
    time.sleep(seconds)
    assert flow.is_alive()
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(scene.run.id, Cancelling())
    scene.wait_for_state("Cancelled")
    wait_for(lambda: not flow.is_alive(), _STRUCK_S)
    assert scene.left_behind() == {}
    return f"{seconds:.1f} s after the start"


def cancel_without_worker(scene: Scene, random: Random) -> str:
    """Cancel a run whose worker and process are dead: nobody is there to hear of it."""
    folder, at = reach_step(scene, random)
    flow = scene.flow_process()
    scene.stack.worker.send(signal.SIGTERM)
    wait_for(lambda: not flow.is_alive(), _STRUCK_S)
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(scene.run.id, Cancelling())
    told = sweep(silent_s=600, max_runs=5)
    assert any("was being cancelled by nobody" in sentence for sentence in told), told
    job = find_job(folder)
    assert job is not None
    assert job.status() is JobStatus.CANCELLED
    scene.stack.worker.start()
    return at


# -- who puts it right -----------------------------------------------------------------------------


def put_right(scene: Scene, fault: Fault) -> None:
    """Do what is left to do for whoever it is left to, and see the pipeline to its end."""
    if fault.helper == "the janitor":
        wait_for(lambda: _is_dead(scene), 120)
        told = sweep(silent_s=600, max_runs=5)
        assert any("is started again" in sentence for sentence in told), told
        wait_for(lambda: not scene.state().is_crashed(), 10)
    elif fault.helper == "a person":
        scene.wait_for_state("Failed", "Cancelled", "Crashed")
        scene.start()
    scene.wait_for_state("Completed")
    if fault.leaves_tasks_open:
        told = sweep(silent_s=600, max_runs=5)
        assert any("in a run that has completed" in sentence for sentence in told), told


def _is_dead(scene: Scene) -> bool:
    """Whether Prefect has heard of the death, or never will."""
    if scene.state().is_crashed():
        return True
    mark = scene.workspace / "flow-runs" / f"{scene.run.id}.json"
    return mark.exists() and not _lives(mark)


def _lives(mark: Path) -> bool:
    return read_process(json.loads(mark.read_bytes())["pid"]) is not None


_JOINS = "is started again under its own id and joins the job"

_FROM_CHECKPOINT = "the job is started again from its last checkpoint"
_AGAIN = "fails with the reason; started again, it goes on where it was"
_CANCELLED = "ends with its job; started again, it goes on where it was"

FAULTS = (
    Fault("flow process killed in training", kill_flow(reach_step), "the janitor", {}, _JOINS),
    Fault(
        "flow process killed in evaluation", kill_flow(reach_evaluation), "the janitor", {}, _JOINS
    ),
    Fault("worker killed", end_worker(signal.SIGKILL), "the janitor", {}, _JOINS),
    Fault("worker told to stop", end_worker(signal.SIGTERM), "the janitor", {}, _JOINS),
    Fault("Prefect server killed in training", server_away("prefect", reach_step), is_short=True),
    Fault("Prefect server killed in evaluation", server_away("prefect", reach_evaluation)),
    Fault("MLflow server killed in training", server_away("mlflow", reach_step)),
    Fault("MLflow server killed in evaluation", server_away("mlflow", reach_evaluation)),
    Fault("S3 store away in training", server_away("s3_process", reach_step), on_s3=True),
    Fault("S3 store away in evaluation", server_away("s3_process", reach_evaluation), on_s3=True),
    Fault(
        "one training rank of two killed",
        kill_ranks("one"),
        attempts={"dpo": 2},
        outcome=_FROM_CHECKPOINT,
        num_ranks=2,
    ),
    Fault(
        "both ranks and their supervisor killed",
        kill_ranks("all"),
        attempts={"dpo": 2},
        outcome=_FROM_CHECKPOINT,
        num_ranks=2,
    ),
    Fault(
        "supervisor killed",
        kill_ranks("supervisor"),
        attempts={"dpo": 2},
        outcome=_FROM_CHECKPOINT,
    ),
    Fault(
        "newest checkpoint damaged and job killed",
        damage_checkpoint,
        attempts={"dpo": 2},
        outcome="the damage is seen, the checkpoint before it taken",
        most_repeated=2 * CHECKPOINT_EVERY,
        is_short=True,
    ),
    Fault(
        "artifact of the SFT model damaged",
        damage_artifact("sft"),
        outcome="the damage is seen, the stage computed again to the same bytes",
        starts_itself=True,
    ),
    Fault(
        "disk full at a checkpoint",
        fill_disk(reach_step),
        "a person",
        {"dpo": 2},
        _AGAIN,
        small_disk="jobs",
    ),
    Fault(
        "disk full at a publish",
        fill_disk(reach_step),
        "a person",
        {},
        _AGAIN,
        small_disk="artifacts",
    ),
    Fault(
        "clock set 2 h back",
        set_clock(-7200),
        outcome="goes on; tasks that ended seem to be at work until the next sweep",
        starts_itself=True,
        needs_compiler=True,
        leaves_tasks_open=True,
    ),
    Fault(
        "clock set 2 h ahead",
        set_clock(7200),
        outcome="nothing happens",
        starts_itself=True,
        needs_compiler=True,
    ),
    Fault("file times 2 h back", set_clock_of_files(-7200), outcome="nothing happens"),
    Fault("file times 2 h ahead", set_clock_of_files(7200), outcome="nothing happens"),
    Fault(
        "the same trigger 8 times at once",
        trigger_at_once,
        outcome="one run",
        starts_itself=True,
    ),
    Fault(
        "the recipe run from a terminal too", run_beside, outcome="waits for the stage, reuses it"
    ),
    Fault("cancelled in the first stages", cancel_early, "a person", {}, _CANCELLED),
    Fault("cancelled in training", cancel(reach_step), "a person", {"dpo": 2}, _CANCELLED),
    Fault(
        "cancelled in evaluation",
        cancel(reach_evaluation),
        "a person",
        {"evaluate-aligned": 2},
        _CANCELLED,
    ),
    Fault(
        "cancelled while no worker is there",
        cancel_without_worker,
        "a person",
        {"dpo": 2},
        "the janitor ends its job; started again, it goes on where it was",
    ),
)
