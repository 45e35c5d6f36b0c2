"""Which Kubernetes object runs a run folder's attempt."""

from typing import Literal

from pydantic import PositiveInt

from alignflow.jobs.handle import JobHandle
from alignflow.jobs.kubernetes.config import Template


class KubernetesHandle(JobHandle):
    """Content of `handle.json`."""

    launcher: Literal["kubernetes"] = "kubernetes"
    template: Template
    context: str | None
    namespace: str
    name: str
    first_attempt: PositiveInt
    """The attempt with which this object began; each time its pods start anew makes another."""
