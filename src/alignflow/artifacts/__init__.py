"""Artifacts: immutable, verified, content-addressed results of stages, on a folder or S3."""

from alignflow.artifacts.manifest import (
    FileEntry,
    Manifest,
    ParentRef,
    canonical_json,
    code_version,
    files_digest,
    stage_key,
)
from alignflow.artifacts.store import Artifact, ArtifactStore

__all__ = [
    "Artifact",
    "ArtifactStore",
    "FileEntry",
    "Manifest",
    "ParentRef",
    "canonical_json",
    "code_version",
    "files_digest",
    "stage_key",
]
