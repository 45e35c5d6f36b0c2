"""Configs of the side effects: base model, cluster, registry, and what every run needs."""

import re
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, field_validator, model_validator

from alignflow.config import Config
from alignflow.data_validation.config import DataConfig
from alignflow.errors import ConfigError
from alignflow.evaluation.config import EvaluationConfig, GateConfig
from alignflow.jobs.kubernetes.config import KubernetesConfig
from alignflow.jobs.slurm.config import SlurmConfig
from alignflow.model_source import ModelConfig
from alignflow.training.token_audit import TokenAuditConfig

_APPROVAL_TIMEOUT_H = 168.0
_PARTS_AHEAD = 16


class ClusterConfig(Config):
    """Where jobs run."""

    launcher: Literal["local", "slurm", "kubernetes"] = "local"
    slurm: SlurmConfig | None = None
    """How jobs are submitted where the launcher is slurm."""
    kubernetes: KubernetesConfig | None = None
    """How jobs are submitted where the launcher is kubernetes."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes the GPUs of this machine where there are any; for a cluster it has to be said."""
    time_limit_s: PositiveInt | None = None
    """Longest time a job may run."""
    max_retries: int = Field(default=2, ge=0)
    """How often a job that was lost is started again from its last checkpoint."""
    price_per_process_hour: float | None = Field(default=None, ge=0)
    """Price of one process (on GPUs: one device) for an hour; the report then shows costs."""
    currency: str = "USD"
    """Currency of the price."""

    @model_validator(mode="after")
    def _cluster_is_described(self) -> Self:
        for name, section in (("slurm", self.slurm), ("kubernetes", self.kubernetes)):
            if (self.launcher == name) != (section is not None):
                raise ValueError(f"launcher: {name} and the section {name} go together")
        if self.launcher != "local" and self.device == "auto":
            raise ValueError("device must be cpu or cuda: this machine is not where jobs run")
        return self

    def layout(self, num_processes: int) -> tuple[int, int]:
        """Return over how many nodes, and how many processes a node, a job is spread.

        Raises:
            ConfigError: The processes don't fill the nodes.
        """
        section = self.slurm or self.kubernetes
        if section is None:
            return 1, num_processes
        per_node = min(num_processes, section.processes_per_node)
        if num_processes % per_node:
            raise ConfigError(
                f"cluster.{self.launcher}.processes_per_node is {per_node}, which doesn't "
                f"divide the {num_processes} processes of a job; choose another layout."
            )
        return num_processes // per_node, per_node


class RowChecksConfig(Config):
    """Where the rows of training sets are checked; it changes nothing in what is decided."""

    runner: Literal["local", "dask", "ray"] = "local"
    """local takes processes of this machine; dask and ray take a cluster, through Prefect's task
    runners (`pip install alignflow[dask]`, `alignflow[ray]`)."""
    address: str | None = None
    """The cluster's scheduler, `tcp://HOST:8786` of Dask or `ray://HOST:10001` of Ray; None starts
    a cluster on this machine for the time of the run."""
    num_processes: PositiveInt | None = None
    """Processes of a cluster that the run starts; None takes as many as there are cores."""
    parts_ahead: PositiveInt = _PARTS_AHEAD
    """Parts of a set, each of about 50,000 rows or 50 MB at most, that are sent before the first of
    them is back. As many as the cluster has cores, and some more, keep it busy; this machine's
    memory has to hold them."""

    @model_validator(mode="after")
    def _cluster_is_asked_for(self) -> Self:
        is_default = self.parts_ahead == _PARTS_AHEAD
        if self.runner == "local" and (self.address or self.num_processes or not is_default):
            raise ValueError("address, num_processes and parts_ahead do nothing with runner: local")
        if self.address and self.num_processes:
            raise ValueError("num_processes is of a cluster that the run starts; leave it out")
        return self


class RegistryConfig(Config):
    """Where accepted models are registered."""

    model_name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the registered model in MLflow."""
    experiment: str = "alignflow"
    """MLflow experiment of the runs."""
    promotion: Literal["manual", "automatic", "approval"] = "manual"
    """What makes a model that passed the gate the champion: `alignflow promote` alone; the run by
    itself; or the run once a person approves."""
    approval_timeout_h: Annotated[float, Field(gt=0, le=8760)] = _APPROVAL_TIMEOUT_H
    """Hours that a person has to answer."""

    @model_validator(mode="after")
    def _timeout_is_of_an_approval(self) -> Self:
        is_default = self.approval_timeout_h == _APPROVAL_TIMEOUT_H
        if self.promotion != "approval" and not is_default:
            raise ValueError("approval_timeout_h does nothing without promotion: approval")
        return self


class RunConfig(Config):
    """What every pipeline needs, whatever it trains."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,40}$")
    """Lower-case name of the pipeline; runs are named after it."""
    workspace: str = ".alignflow"
    """Folder of run folders, caches and, by default, the artifact store and MLflow's database."""
    store: str | None = None
    """URL of the artifact store, a folder or `s3://…`; None is `artifacts` in the workspace."""
    model: ModelConfig
    data: DataConfig
    row_checks: RowChecksConfig = RowChecksConfig()
    token_audit: TokenAuditConfig = TokenAuditConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    gate: GateConfig = GateConfig()
    registry: RegistryConfig
    cluster: ClusterConfig = ClusterConfig()

    @field_validator("workspace")
    @classmethod
    def _workspace_is_a_path(cls, value: str) -> str:
        if re.match(r"^[a-z0-9]+://", value):
            raise ValueError("the workspace is a local folder; put a URL into store")
        return value
