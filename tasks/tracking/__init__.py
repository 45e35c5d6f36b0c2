"""The only package that talks to MLflow: runs, metrics, datasets, lineage edges, the registry."""

from alignflow.tasks.tracking.client import registry_errors, tracking_uri
from alignflow.tasks.tracking.journal import Journal
from alignflow.tasks.tracking.leftovers import close_runs
from alignflow.tasks.tracking.registry import RegisteredVersion, Registry, resolve_version
from alignflow.tasks.tracking.runs import StageRun, Tracker

__all__ = [
    "Journal",
    "RegisteredVersion",
    "Registry",
    "StageRun",
    "Tracker",
    "close_runs",
    "registry_errors",
    "resolve_version",
    "tracking_uri",
]
