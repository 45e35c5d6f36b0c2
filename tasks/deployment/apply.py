"""Making a Prefect server hold what `deployments/prefect.yaml` says, and changing nothing else.

The file is in the words of Prefect's own `prefect.yaml`, but is not handed to `prefect deploy`,
which makes no work pools, drops keys that it doesn't know without a word, leaves schedules behind
that the file no longer has, and makes every trigger anew each time, with which a server forgets
what it had just counted. Here each thing is compared with what the server holds first.

Whether a deployment is paused, and whether a schedule or an automation is on, is said when it is
made; after that it is the decision of whoever switches it on Prefect's page.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.orchestration.routes import ServerRoutes
from prefect.client.schemas.actions import (
    DeploymentScheduleCreate,
    DeploymentUpdate,
    WorkPoolCreate,
    WorkPoolUpdate,
)
from prefect.client.schemas.objects import (
    ConcurrencyLimitStrategy,
    ConcurrencyOptions,
    DeploymentSchedule,
)
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule, RRuleSchedule
from prefect.events import AutomationCore, DeploymentEventTrigger
from prefect.exceptions import ObjectNotFound
from prefect.flows import Flow, load_flow_from_entrypoint
from prefect.utilities.callables import parameter_schema
from prefect.workers.process import ProcessWorker

from alignflow.errors import ConfigError
from alignflow.tasks.config import RunConfig
from alignflow.tasks.deployment.config import (
    DeploymentConfig,
    DeploymentFile,
    QueueConfig,
    ScheduleConfig,
    TriggerConfig,
    WorkPoolConfig,
)
from alignflow.tasks.prefect_api import read_or_none

_QUEUES: ServerRoutes = "/work_pools/{work_pool_name}/queues"
_QUEUE: ServerRoutes = "/work_pools/{work_pool_name}/queues/{name}"

What = Literal["created", "updated", "removed", "unchanged"]


class Change(NamedTuple):
    """What became of one thing on the server."""

    what: What
    kind: str
    name: str


def apply_pools(client: SyncPrefectClient, pools: Sequence[WorkPoolConfig]) -> Iterator[Change]:
    """Make work pools with their queues."""
    for pool in pools:
        yield Change(_apply_pool(client, pool), "work pool", pool.name)
        for queue in pool.queues:
            what = _apply_queue(client, pool.name, queue)
            yield Change(what, "work queue", f"{pool.name}/{queue.name}")


def apply_deployments(
    client: SyncPrefectClient, file: DeploymentFile, recipes: Sequence[RunConfig]
) -> Iterator[Change]:
    """Make the deployments, those of a recipe once for each.

    Args:
        client: Of the server.
        file: What is wanted.
        recipes: Their paths have to hold on the workers' machines.

    Raises:
        ConfigError: Two recipes have one name, or an entrypoint leads to no flow.
    """
    names = [recipe.name for recipe in recipes]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"two recipes have the name {twice}; their deployments would be one.")
    filled = [recipe.model_dump(mode="json") for recipe in recipes]
    for deployment in file.deployments:
        if not deployment.is_per_recipe:
            yield from _apply_deployment(client, deployment)
        for recipe in filled if deployment.is_per_recipe else ():
            yield from _apply_deployment(client, deployment.of_recipe(recipe))


def apply_automation(
    client: SyncPrefectClient, automation: AutomationCore
) -> Literal["created", "updated", "unchanged"]:
    """Make an automation, told by its name."""
    standing = client.read_automations_by_name(automation.name)
    for superfluous in standing[1:]:
        client.delete_automation(superfluous.id)
    if not standing:
        client.create_automation(automation)
        return "created"
    if _content(automation) == _content(standing[0]) and len(standing) == 1:
        return "unchanged"
    # Whom it belongs to can't be changed, nor said again.
    said = automation.model_dump(exclude={"owner_resource", "enabled"})
    client.update_automation(standing[0].id, AutomationCore(**said, enabled=standing[0].enabled))
    return "updated"


# Pools and queues ------------------------------------------------------------------------------


def _apply_pool(client: SyncPrefectClient, pool: WorkPoolConfig) -> What:
    try:
        standing = client.read_work_pool(pool.name)
    except ObjectNotFound:
        client.create_work_pool(
            WorkPoolCreate(
                name=pool.name,
                type=pool.type,
                base_job_template=ProcessWorker.get_default_base_job_template(),
                concurrency_limit=pool.concurrency_limit,
            )
        )
        return "created"
    if standing.type != pool.type:
        raise ConfigError(
            f"the work pool {pool.name} is of type {standing.type}, not {pool.type}; delete it, or "
            "name another one in the file."
        )
    if standing.concurrency_limit == pool.concurrency_limit:
        return "unchanged"
    # The client leaves out what is None, and with it the removal of a limit.
    client.request(
        "PATCH",
        "/work_pools/{name}",
        path_params={"name": pool.name},
        json=WorkPoolUpdate(concurrency_limit=pool.concurrency_limit).model_dump(
            mode="json", include={"concurrency_limit"}
        ),
    )
    return "updated"


def _apply_queue(client: SyncPrefectClient, pool: str, queue: QueueConfig) -> What:
    wanted = {"priority": queue.priority, "concurrency_limit": queue.concurrency_limit}
    names = {"work_pool_name": pool, "name": queue.name}
    standing = read_or_none(client, _QUEUE, **names)
    if standing is None:
        content = {"name": queue.name, **wanted}
        client.request("POST", _QUEUES, path_params={"work_pool_name": pool}, json=content)
        return "created"
    if {key: standing[key] for key in wanted} == wanted:
        return "unchanged"
    client.request("PATCH", _QUEUE, path_params=names, json=wanted)
    return "updated"


# Deployments -----------------------------------------------------------------------------------


def _apply_deployment(client: SyncPrefectClient, config: DeploymentConfig) -> Iterator[Change]:
    flow, schema = _load_flow(config.entrypoint)
    name = f"{flow.name}/{config.name}"
    wanted = {**_wanted(config), "parameter_openapi_schema": schema}
    try:
        standing = client.read_deployment_by_name(name)
    except ObjectNotFound:
        deployment_id = client.create_deployment(
            flow_id=client.create_flow_from_name(flow.name),
            name=config.name,
            schedules=[_schedule(schedule) for schedule in config.schedules],
            **wanted,
        )
        yield Change("created", "deployment", name)
    else:
        deployment_id = standing.id
        yield Change(_update_deployment(client, standing, config, wanted), "deployment", name)
    yield from _apply_triggers(client, deployment_id, name, config.triggers)


@functools.cache
def _load_flow(entrypoint: str) -> tuple[Flow[..., Any], dict[str, Any]]:
    """Return a flow and the schema of its parameters, which takes a while where it has a recipe."""
    try:
        flow: Flow[..., Any] = load_flow_from_entrypoint(entrypoint, use_placeholder_flow=False)
    except Exception as error:
        raise ConfigError(f"{entrypoint}: this is no flow ({error}).") from None
    return flow, parameter_schema(flow).model_dump(mode="json", exclude_unset=True)


def _wanted(config: DeploymentConfig) -> dict[str, Any]:
    limit = config.concurrency_limit
    return {
        "description": config.description,
        "entrypoint": config.entrypoint,
        "parameters": config.parameters,
        "enforce_parameter_schema": True,
        "work_pool_name": config.work_pool.name,
        "work_queue_name": config.work_pool.work_queue_name or "default",
        "job_variables": config.work_pool.job_variables,
        "concurrency_limit": limit.limit if limit else None,
        "concurrency_options": ConcurrencyOptions(
            collision_strategy=ConcurrencyLimitStrategy(limit.collision_strategy)
        )
        if limit
        else None,
        "tags": ["alignflow"],
        "pull_steps": [],
    }


def _update_deployment(
    client: SyncPrefectClient,
    standing: DeploymentResponse,
    config: DeploymentConfig,
    wanted: Mapping[str, Any],
) -> What:
    changed: dict[str, Any] = {
        key: value for key, value in wanted.items() if _held(standing, key) != value
    }
    if changed:
        # The pool's name says which pool the queue's name is meant in.
        pool = {key: wanted[key] for key in ("work_pool_name", "work_queue_name")}
        client.update_deployment(standing.id, DeploymentUpdate(**{**pool, **changed}))
    has_other_schedules = _update_schedules(client, standing, config.schedules)
    return "updated" if changed or has_other_schedules else "unchanged"


def _update_schedules(
    client: SyncPrefectClient, standing: DeploymentResponse, wanted: Sequence[ScheduleConfig]
) -> bool:
    """Make a deployment's schedules, told by their slugs; return whether one changed."""
    # An update of the deployment itself would leave those behind that are no longer wanted.
    there = {schedule.slug: schedule for schedule in standing.schedules}
    superfluous = [there[slug] for slug in there.keys() - {each.slug for each in wanted}]
    for stale in superfluous:
        client.delete_deployment_schedule(standing.id, stale.id)
    missing = [_schedule(each) for each in wanted if each.slug not in there]
    if missing:
        client.create_deployment_schedules(standing.id, missing)
    other = [
        (there[each.slug], _schedule(each))
        for each in wanted
        if each.slug in there and _content_of(there[each.slug]) != _content_of(_schedule(each))
    ]
    for was, schedule in other:
        client.update_deployment_schedule(
            standing.id, was.id, schedule=schedule.schedule, parameters=schedule.parameters
        )
    return bool(superfluous or missing or other)


def _held(standing: DeploymentResponse, key: str) -> Any:
    """Return what a deployment has, as `_wanted` says it."""
    if key == "concurrency_limit":
        limit = standing.global_concurrency_limit
        return limit.limit if limit else None
    value = getattr(standing, key)
    if key == "pull_steps":
        return value or []
    return value


def _schedule(config: ScheduleConfig) -> DeploymentScheduleCreate:
    schedule: CronSchedule | RRuleSchedule
    if config.cron is not None:
        schedule = CronSchedule(cron=config.cron, timezone=config.timezone)
    else:
        schedule = RRuleSchedule(rrule=str(config.rrule), timezone=config.timezone)
    return DeploymentScheduleCreate(
        schedule=schedule, active=config.active, slug=config.slug, parameters=config.parameters
    )


def _content_of(schedule: DeploymentSchedule | DeploymentScheduleCreate) -> dict[str, Any]:
    return schedule.model_dump(mode="json", include={"schedule", "parameters"})


# Triggers --------------------------------------------------------------------------------------


def _apply_triggers(
    client: SyncPrefectClient,
    deployment_id: UUID,
    deployment: str,
    triggers: Sequence[TriggerConfig],
) -> Iterator[Change]:
    # The server doesn't say to whom an automation belongs, so its name does.
    named = {f"{deployment}: {trigger.name}": trigger for trigger in triggers}
    owner = f"prefect.deployment.{deployment_id}"
    for standing in client.read_resource_related_automations(owner):
        if standing.name.startswith(f"{deployment}: ") and standing.name not in named:
            client.delete_automation(standing.id)
            yield Change("removed", "automation", standing.name)
    for name, config in named.items():
        said = {**config.model_dump(mode="json"), "name": name}
        trigger = DeploymentEventTrigger.model_validate(said)
        trigger.set_deployment_id(deployment_id)
        yield Change(apply_automation(client, trigger.as_automation()), "automation", name)


def _content(automation: AutomationCore) -> dict[str, Any]:
    """Return what an automation does, without what the server adds or counts."""
    fields = {"name", "description", "trigger", "actions"}
    dumped = automation.model_dump(mode="json", include=fields)
    dumped["trigger"].pop("id", None)
    for key in ("expect", "after", "for_each"):
        dumped["trigger"][key] = sorted(dumped["trigger"].get(key, []))
    return dumped
