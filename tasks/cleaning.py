"""What a store and a workspace hold that nobody needs: found, and removed by rule."""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from alignflow.artifacts import ArtifactStore
from alignflow.artifacts.files import os_errors_as
from alignflow.artifacts.garbage import Garbage, collect, find_garbage
from alignflow.errors import ConfigError, StoreError
from alignflow.evaluation.judges.files import JUDGE_KIND
from alignflow.jobs.finding import find_job, run_folders
from alignflow.jobs.run_folder import RunFolder
from alignflow.jobs.spec import JobStatus
from alignflow.tasks.tracking import Registry, registry_errors

# Trained by a command of its own and named by its digest in recipes: no run makes it again.
_KEPT_KINDS = frozenset({JUDGE_KIND})


@dataclass(frozen=True)
class JobFolder:
    """The folder of a job that has ended."""

    path: Path
    size: int
    """Bytes."""
    unused_s: float
    """Seconds since anything in it changed."""


def clean_store(
    store: ArtifactStore,
    registry: Registry,
    *,
    unused_s: float,
    allow_none_registered: bool,
    delete: bool,
) -> Garbage:
    """Return the artifacts that nobody needs, or remove them and return what was removed.

    Needed are the registered versions, the last accepted version of each training set, what a run
    has wanted within `unused_s` seconds, judges, and all that these were made from.

    Args:
        store: The artifact store.
        registry: Whose versions are kept.
        unused_s: Seconds for which no run may have wanted what goes.
        allow_none_registered: Go on where the registry has no version with files in the store.
        delete: Remove, instead of only looking.

    Raises:
        StoreError: The store can't be read or written to.
        ConfigError: The registry has no version in this store, so that it may be the wrong one.
        RegistryError: MLflow can't be asked.
    """
    with registry_errors():
        # Before the records are read: what is registered from now on was wanted just now.
        named = {value for tags in registry.all_tags() for value in tags.values()}
    records = store.records.read()
    without_key = store.records.without_key(records)
    # A version's tags name its model, its data, and the judgement that a promotion asks again.
    registered = [
        manifest.ref
        for manifest in [*without_key, *(record.manifest for record in records)]
        if manifest.digest in named or manifest.key in named
    ]
    if records and not registered and not allow_none_registered:
        raise ConfigError(
            f"the registry has no version whose model lies in {store.url}, so everything unused "
            "would go; set MLFLOW_TRACKING_URI to the registry of this store, or say "
            "--none-registered if there is none."
        )
    garbage = find_garbage(
        records,
        without_key,
        roots=[*registered, *store.records.latest()],
        kept_kinds=_KEPT_KINDS,
        unused_s=unused_s,
    )
    return collect(store.records, garbage, records, unused_s=unused_s) if delete else garbage


def clean_jobs(workspace: Path, *, unused_s: float, delete: bool) -> list[JobFolder]:
    """Return the folders of jobs that ended long ago, or remove them and return those removed.

    With the folder of a job that failed go its checkpoints.

    Raises:
        StoreError: A folder can't be read or removed.
    """
    with os_errors_as(StoreError, f"clean the jobs of {workspace}"):
        found = [
            JobFolder(folder.path, *_size_and_age(folder.path))
            for folder in run_folders(workspace)
            if not _is_live(folder)
        ]
        old = [folder for folder in found if folder.unused_s >= unused_s]
        for folder in old if delete else ():
            _remove(folder.path)
        return old


def _is_live(folder: RunFolder) -> bool:
    job = find_job(folder)
    return job is not None and job.status() in (JobStatus.PENDING, JobStatus.RUNNING)


def _size_and_age(path: Path) -> tuple[int, float]:
    states = [each.lstat() for each in [path, *path.rglob("*")]]
    newest = max(state.st_mtime for state in states)
    return sum(state.st_size for state in states), time.time() - newest


def _remove(path: Path) -> None:
    """Remove a run folder, unless an attempt was started there meanwhile."""
    with RunFolder(path).submission():
        if not _is_live(RunFolder(path)):
            shutil.rmtree(path)
