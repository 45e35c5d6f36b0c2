"""What stands when a fault is over: the end that every run must come to, and what must be gone."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterTags
from prefect.client.schemas.objects import FlowRun, State

from alignflow.artifacts import ArtifactStore
from alignflow.jobs.handle import JobHandle
from alignflow.jobs.local import Handle
from alignflow.jobs.run_folder import RunFolder

LOSS = "dpo/loss"

_NEVER_RAN = "NotReady"
"""Prefect's last state of a task whose parent failed; it has no type that is final."""


@dataclass(frozen=True)
class End:
    """What a pipeline has made: the same after every fault as without one."""

    models: tuple[str, ...]
    """Digests of the registered versions, in their order."""
    datasets: tuple[str, ...]
    """Digests of the training sets, as the version's tags name them."""
    final_loss: float
    """Of the stage that aligns the model."""


@dataclass(frozen=True)
class Job:
    """What a job's run folder says of how often it was run."""

    name: str
    attempts: int
    repeated_steps: int
    """Training steps that more than one attempt took."""

    @property
    def stage(self) -> str:
        """Return the stage that it computes."""
        return self.name.rpartition("-")[0]


def read_end(mlflow_uri: str, store: ArtifactStore, model: str) -> End:
    """Return what the registry and the store hold of a model."""
    found = MlflowClient(mlflow_uri).search_model_versions(f"name='{model}'")
    versions = sorted(found, key=lambda version: int(version.version))
    tags = versions[-1].tags
    named = sorted(name for name in tags if name.startswith("alignflow.dataset."))
    return End(
        models=tuple(version.tags["alignflow.digest"] for version in versions),
        datasets=tuple(tags[name] for name in named),
        final_loss=store.get(tags["alignflow.digest"]).manifest.metrics[LOSS],
    )


def read_jobs(workspace: Path) -> list[Job]:
    """Return every job of a workspace."""
    found = []
    for path in sorted(workspace.glob("jobs/*/handle.json")):
        folder = RunFolder(path.parent)
        handle: JobHandle | None = Handle.read(folder)
        assert handle is not None
        found.append(Job(path.parent.name, handle.attempt, repeated_steps(folder)))
    return found


def repeated_steps(folder: RunFolder) -> int:
    """Return how many training steps stand in the metrics more than once."""
    lines = folder.metric_reader().read_new()
    taken = Counter(line["step"] for line in lines if line.get("phase") == "train")
    return sum(count - 1 for count in taken.values())


def flow_runs(tag: str) -> Sequence[FlowRun]:
    """Return the flow runs with a tag, the newest last."""
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(
            flow_run_filter=FlowRunFilter(tags=FlowRunFilterTags(all_=[tag]))
        )
    return sorted(runs, key=lambda run: str(run.created))


def unfinished_in_prefect(tag: str) -> list[str]:
    """Return the flow and task runs that Prefect doesn't show as ended."""
    left = []
    with get_client(sync_client=True) as client:
        for run in flow_runs(tag):
            tasks = client.read_task_runs(
                flow_run_filter=FlowRunFilter.model_validate({"id": {"any_": [run.id]}})
            )
            states = [(run.name, run.state), *((task.name, task.state) for task in tasks)]
            left += [
                f"{name}: {state.name if state else 'without a state'}"
                for name, state in states
                if not _has_ended(state)
            ]
    return left


def _has_ended(state: State[object] | None) -> bool:
    return state is not None and (state.is_final() or state.name == _NEVER_RAN)


def unfinished_in_mlflow(uri: str, experiment: str) -> list[str]:
    """Return the runs that MLflow shows as running."""
    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    runs = client.search_runs([found.experiment_id], "attributes.status = 'RUNNING'")
    return [str(run.info.run_name) for run in runs]
