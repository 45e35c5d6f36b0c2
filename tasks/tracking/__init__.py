"""The only package that talks to MLflow: runs, metrics, datasets, lineage edges, the registry."""

from alignflow.tasks.tracking.client import tracking_uri
from alignflow.tasks.tracking.registry import RegisteredVersion, Registry, resolve_version
from alignflow.tasks.tracking.runs import StageRun, Tracker

__all__ = [
    "RegisteredVersion",
    "Registry",
    "StageRun",
    "Tracker",
    "resolve_version",
    "tracking_uri",
]
