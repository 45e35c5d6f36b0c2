"""What the stages of one pipeline run share, and the one way a stage is computed or reused."""

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from alignflow.artifacts import Artifact, ArtifactStore, ParentRef, code_version, stage_key
from alignflow.artifacts.manifest import MANIFEST_NAME
from alignflow.data_validation.expectations import ExpectationResult
from alignflow.errors import ConfigError, RunStoppedError
from alignflow.jobs.base import Launcher
from alignflow.tasks.config import RunConfig
from alignflow.tasks.logs import run_logger
from alignflow.tasks.row_checks import RowChecks
from alignflow.tasks.specs import job_folder
from alignflow.tasks.tracking import StageRun, Tracker
from alignflow.terminal import Display

StageStatus = Literal["computed", "reused"]


@dataclass(frozen=True)
class StageOutput:
    """What computing a stage leaves behind: files to publish and facts about them."""

    folder: Path
    metrics: Mapping[str, float] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: str | None = None
    chat_template: str | None = None
    seconds: float | None = None
    """Time it took where that isn't the time of the call: a job may wait for its turn."""


Compute = Callable[[StageRun, Path], StageOutput]


@dataclass(frozen=True)
class StageRecord:
    """How a stage came to its artifact in this run."""

    name: str
    status: StageStatus
    seconds: float
    """Time that computing it took, in this run or in the one that did."""
    artifact: Artifact


class Pipeline:
    """One run of a recipe: where things lie, who launches, records and shows.

    Not a dataclass: Prefect looks into dataclasses that tasks are given, and would copy this one.

    Attributes:
        forced: Stages computed anew even if their key is in the store.
        must_reuse: Stages that may not be computed, because the caller starts after them.
        stop: Set when the run ends: waiters cancel their jobs and leave.
        records: How each finished stage came to its artifact.
        row_checks: The cluster that checks rows, if not this machine.
        drifts: How far training sets moved from their last accepted versions, by name.
    """

    def __init__(
        self,
        *,
        recipe: RunConfig,
        run_id: str,
        flow_run_id: str,
        workspace: Path,
        store: ArtifactStore,
        launcher: Launcher,
        tracker: Tracker,
        display: Display,
        forced: frozenset[str] = frozenset(),
        must_reuse: frozenset[str] = frozenset(),
        row_checks: RowChecks | None = None,
    ) -> None:
        self.recipe = recipe
        # Two runs that start within one second have one name.
        self.run_id = f"{run_id}-{flow_run_id[-6:]}"
        self.flow_run_id = flow_run_id
        self.workspace = workspace
        self.store = store
        self.launcher = launcher
        self.tracker = tracker
        self.display = display
        self.forced = forced
        self.must_reuse = must_reuse
        self.row_checks = row_checks
        self.stop = threading.Event()
        self.records: dict[str, StageRecord] = {}
        self.drifts: dict[str, ExpectationResult] = {}
        self._cleared: set[str] = set()
        # Of a clock that nobody sets.
        self._started_at = time.monotonic()

    @property
    def seconds(self) -> float:
        """How long this process has worked on the pipeline."""
        return time.monotonic() - self._started_at

    @property
    def cache(self) -> Path:
        """Folder of local copies of remote files and artifacts."""
        return self.workspace / "cache"

    def raise_if_stopped(self, stage: str) -> None:
        """Leave a stage that the end of the run has overtaken.

        Raises:
            RunStoppedError: The run has ended.
        """
        if self.stop.is_set():
            raise RunStoppedError(f"The run was stopped before {stage} was done.")

    def must_clear(self, stage: str) -> bool:
        """Whether what earlier runs left of the stage's job has to go; once a run.

        A retry of a forced stage goes on from the checkpoints of this run.
        """
        is_first = stage in self.forced and stage not in self._cleared
        self._cleared.add(stage)
        return is_first

    def job_folder(self, stage: str, key: str) -> Path:
        """Run folder of a stage's job; the same key is the same job."""
        return job_folder(self.workspace, stage, key)

    def forget_job(self, stage: str, key: str) -> None:
        """Remove what the job of a published stage leaves besides its record.

        Its output shares the bytes of the artifact: taken for a finished job after damage to the
        store, it would bring the damage back. Checkpoints are several times the artifact's size.
        """
        folder = self.job_folder(stage, key)
        # First, so that what is interrupted here is a job to start again, not one that ended well.
        (folder / "result.json").unlink(missing_ok=True)
        for name in ("output", "checkpoints", "tokens"):
            shutil.rmtree(folder / name, ignore_errors=True)

    def local(self, artifact: Artifact) -> Path:
        """Return a local, verified folder with the artifact's files."""
        return self.store.fetch(artifact, self.cache)

    @contextmanager
    def scratch(self, name: str) -> Iterator[Path]:
        """A folder in the workspace that is gone afterwards."""
        folder = self.workspace / "tmp" / f"{name}-{os.getpid()}-{threading.get_ident()}"
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of a run: what determines its artifact."""

    name: str
    """Name in the pipeline, such as `evaluate-sft`."""
    kind: str
    """Kind of artifact it makes, such as `evaluation`."""
    config: Mapping[str, Any]
    """Resolved config, JSON types: everything besides the parents that the result depends on."""
    revision: int
    """Raised by a change to the stage's code that changes what it makes."""
    parents: Mapping[str, Artifact] = field(default_factory=dict)
    """Artifacts it reads, by role."""

    @property
    def parent_refs(self) -> dict[str, ParentRef]:
        """The parents as a manifest names them."""
        return {role: parent.ref for role, parent in self.parents.items()}

    @property
    def key(self) -> str:
        """Name under which the store finds the artifact again."""
        return stage_key(self.kind, self.config, self.parent_refs, code_version(self.revision))


def run_stage(pipeline: Pipeline, stage: Stage, compute: Compute) -> Artifact:
    """Return the stage's artifact from the store, or compute and publish it.

    `compute` gets the stage's MLflow run and a scratch folder that is gone after publishing.

    Two runs that want the same key at once compute it once: the second waits for the lock, then
    finds the artifact.

    Raises:
        ConfigError: The run starts after this stage, and the store doesn't hold its artifact.
        RunStoppedError: The run has ended.
    """
    pipeline.raise_if_stopped(stage.name)
    key = stage.key

    def note_waiting(holder: str) -> None:
        pipeline.raise_if_stopped(stage.name)
        pipeline.display.note(stage.name, f"{holder} computes it; waiting")

    pipeline.display.started(stage.name)
    run_logger().info("%s has key %s", stage.name, key)
    status: StageStatus = "reused"
    try:
        with (
            _stage_run(pipeline, stage, key) as run,
            pipeline.store.lock(key, on_wait=note_waiting),
        ):
            artifact = None if stage.name in pipeline.forced else pipeline.store.find(key)
            if artifact is None:
                status = "computed"
                # At once, to be seen while it is computed; of a reused stage with all the rest.
                run.log_params(stage.config)
                artifact = _compute(pipeline, stage, key, run, compute)
            else:
                pipeline.store.records.note_use(key)
            _log_artifact(pipeline, stage, run, artifact, status)
    except BaseException:
        pipeline.display.finished(stage.name, "failed")
        raise
    seconds = float(artifact.manifest.details.get("seconds", 0.0))
    pipeline.records[stage.name] = StageRecord(stage.name, status, seconds, artifact)
    run_logger().info("%s was %s: artifact %s", stage.name, status, artifact.digest)
    pipeline.display.finished(stage.name, "done" if status == "computed" else "reused")
    return artifact


def _compute(
    pipeline: Pipeline,
    stage: Stage,
    key: str,
    run: StageRun,
    compute: Compute,
) -> Artifact:
    if stage.name in pipeline.must_reuse:
        raise ConfigError(
            f"stage {stage.name} has no artifact in {pipeline.store.url} yet, so the run can't "
            "start after it; leave out --from."
        )
    started = time.monotonic()
    with pipeline.scratch(stage.name) as scratch:
        output = compute(run, scratch)
        seconds = time.monotonic() - started if output.seconds is None else output.seconds
        artifact = pipeline.store.publish(
            output.folder,
            kind=stage.kind,
            key=key,
            code_version=code_version(stage.revision),
            parents=stage.parent_refs,
            config=stage.config,
            metrics=output.metrics,
            details={**output.details, "seconds": round(seconds, 3)},
            tokenizer=output.tokenizer,
            chat_template=output.chat_template,
        )
        pipeline.forget_job(stage.name, key)
        return artifact


def _log_inputs(pipeline: Pipeline, stage: Stage, run: StageRun) -> None:
    """Record the parents: data by content, models as edges from who made them."""
    datasets = [
        (str(parent.manifest.details.get("name", role)), parent)
        for role, parent in stage.parents.items()
        if parent.kind in ("dataset", "benchmark")
    ]
    models = [
        model_id
        for parent in stage.parents.values()
        if _holds_model(parent) and (model_id := pipeline.tracker.find_model(parent)) is not None
    ]
    run.log_inputs(datasets, models, context=stage.name)


def _log_artifact(
    pipeline: Pipeline, stage: Stage, run: StageRun, artifact: Artifact, status: StageStatus
) -> None:
    """Record what came of a stage, the same whether it was computed or reused."""
    manifest = artifact.manifest
    run.log_text(manifest.to_json().decode(), MANIFEST_NAME)
    if _holds_model(artifact):
        pipeline.tracker.log_model(run, stage.name, artifact)
    if any(file.path.startswith("data_docs/") for file in manifest.files):
        run.log_folder(pipeline.local(artifact) / "data_docs", "data_docs")
    curves = manifest.details.get("curves", [])
    # A final value without a step would end up among the steps of the curve of its name.
    in_curves = {name for line in curves for name in line}
    run.log(
        {name: value for name, value in manifest.metrics.items() if name not in in_curves},
        time_ms=int(time.time() * 1000),
        lines=curves if status == "reused" or run.has_lost_lines else (),
        config=stage.config if status == "reused" else None,
        tags={
            "alignflow.digest": artifact.digest,
            "alignflow.uri": artifact.uri,
            "alignflow.status": status,
        },
    )


def _holds_model(artifact: Artifact) -> bool:
    return artifact.manifest.tokenizer is not None


@contextmanager
def _stage_run(pipeline: Pipeline, stage: Stage, key: str) -> Iterator[StageRun]:
    """Open the stage's nested MLflow run and close it with the right status."""
    parents = {f"alignflow.parent.{role}": parent.digest for role, parent in stage.parents.items()}
    run = pipeline.tracker.start_stage(
        stage.name, {"alignflow.key": key, "alignflow.kind": stage.kind, **parents}
    )
    try:
        _log_inputs(pipeline, stage, run)
        yield run
    except (KeyboardInterrupt, RunStoppedError):
        run.end("KILLED")
        raise
    except BaseException:
        run.end("FAILED")
        raise
    run.end("FINISHED")
