"""The content of `deployments/prefect.yaml`, in Prefect's own words as far as it has some."""

import re
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

import alignflow
from alignflow.config import Config
from alignflow.errors import ConfigError

DEFAULT_FILE = Path(alignflow.__file__).parent / "deployments" / "prefect.yaml"
"""The file that comes with alignflow."""

_PLACEHOLDER = re.compile(r"\{\{\s*recipe(?P<path>(?:\.\w+)*)\s*\}\}")

Text = Annotated[str, Field(min_length=1)]


class QueueConfig(Config):
    """A work queue of a pool."""

    name: Text
    priority: PositiveInt
    """1 goes first."""
    concurrency_limit: NonNegativeInt | None = None
    """Most runs at once."""


class WorkPoolConfig(Config):
    """A work pool; workers take runs from it."""

    name: Text
    type: Literal["process"] = "process"
    concurrency_limit: NonNegativeInt | None = None
    """Most runs at once."""
    queues: list[QueueConfig] = []


class WorkPoolRef(Config):
    """Where the runs of a deployment are queued."""

    name: Text
    work_queue_name: str | None = None
    job_variables: dict[str, Any] = {}
    """What the process of a run gets, such as `env`."""


class DeploymentLimit(Config):
    """How many runs of a deployment there may be at once."""

    limit: PositiveInt
    collision_strategy: Literal["ENQUEUE", "CANCEL_NEW"] = "ENQUEUE"


class ScheduleConfig(Config):
    """When a deployment runs by itself."""

    slug: Text
    """Its name in the deployment."""
    cron: str | None = None
    rrule: str | None = None
    """RFC 5545."""
    timezone: str = "UTC"
    active: bool = True
    """When it is made; after that it is switched on Prefect's page."""
    parameters: dict[str, Any] = {}

    @model_validator(mode="after")
    def _is_one_schedule(self) -> Self:
        from prefect.client.schemas.schedules import CronSchedule, RRuleSchedule

        if (self.cron is None) == (self.rrule is None):
            raise ValueError(f"schedule {self.slug} needs either cron or rrule")
        if self.cron is not None:
            CronSchedule(cron=self.cron, timezone=self.timezone)
        else:
            RRuleSchedule(rrule=str(self.rrule), timezone=self.timezone)
        return self


class TriggerConfig(Config):
    """Events by which a deployment runs."""

    name: Text
    """In the deployment."""
    expect: Annotated[list[Text], Field(min_length=1)]
    match: dict[str, str]
    for_each: list[str] = []
    within: timedelta = timedelta(0)
    """Seconds in which a further event of the same kind starts nothing."""
    parameters: dict[str, Any] = {}


class DeploymentConfig(Config):
    """A flow with its parameters, schedules and triggers."""

    name: Text
    entrypoint: Annotated[str, Field(pattern=r"^alignflow(\.\w+)+$")]
    """Module path of the flow, which a worker imports from wherever it runs."""
    description: str = ""
    parameters: dict[str, Any] = {}
    work_pool: WorkPoolRef
    concurrency_limit: DeploymentLimit | None = None
    schedules: list[ScheduleConfig] = []
    triggers: list[TriggerConfig] = []

    @property
    def is_per_recipe(self) -> bool:
        """Whether it is made once a recipe."""
        return _PLACEHOLDER.search(self.model_dump_json()) is not None

    def of_recipe(self, recipe: Mapping[str, Any]) -> Self:
        """Return it with what it takes from a recipe filled in."""
        return type(self).model_validate(_filled(self.model_dump(), recipe))


class NotificationConfig(Config):
    """Events of which every channel is told."""

    name: Text
    expect: Annotated[list[Text], Field(min_length=1)]
    subject: Text
    body: Text


class DeploymentFile(Config):
    """The file, whole."""

    work_pools: list[WorkPoolConfig] = []
    deployments: list[DeploymentConfig] = []
    notifications: list[NotificationConfig] = []

    @model_validator(mode="after")
    def _pools_are_there(self) -> Self:
        pools = {pool.name: {queue.name for queue in pool.queues} for pool in self.work_pools}
        for deployment in self.deployments:
            pool, queue = deployment.work_pool.name, deployment.work_pool.work_queue_name
            if pool not in pools:
                raise ValueError(f"{deployment.entrypoint}: there is no work pool {pool}")
            if queue is not None and queue not in pools[pool]:
                raise ValueError(f"{deployment.entrypoint}: pool {pool} has no queue {queue}")
        return self


def _filled(value: Any, recipe: Mapping[str, Any]) -> Any:
    """Return a value with the placeholders of a recipe filled in; one alone keeps its type."""
    if isinstance(value, dict):
        return {key: _filled(each, recipe) for key, each in value.items()}
    if isinstance(value, list):
        return [_filled(each, recipe) for each in value]
    if not isinstance(value, str):
        return value
    alone = _PLACEHOLDER.fullmatch(value)
    if alone is not None:
        return _looked_up(alone["path"], recipe)
    return _PLACEHOLDER.sub(lambda match: str(_looked_up(match["path"], recipe)), value)


def _looked_up(path: str, recipe: Mapping[str, Any]) -> Any:
    found: Any = recipe
    for key in path.split(".")[1:]:
        if not isinstance(found, Mapping) or key not in found:
            raise ConfigError(f"{{{{ recipe{path} }}}}: a recipe has no such key.")
        found = found[key]
    return found
