"""Versions that wait for a person: how they are found, approved, rejected and reminded of.

A request is in tags of the version, so that it is found without Prefect.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import httpx
from prefect.client.orchestration import get_client
from prefect.exceptions import PrefectException
from prefect.flow_runs import resume_flow_run
from prefect.settings import PREFECT_API_URL

from alignflow.errors import InputError
from alignflow.tasks.decisions import (
    CANDIDATE,
    CHAMPION,
    Author,
    Decision,
    decide,
    make_decision,
)
from alignflow.tasks.events import emit
from alignflow.tasks.logs import run_logger
from alignflow.tasks.promotion import promote
from alignflow.tasks.tracking import RegisteredVersion, Registry, registry_errors

_TAG = "alignflow.approval"


@dataclass(frozen=True)
class Request:
    """A version that waits for a person, or did."""

    version: RegisteredVersion
    run: str
    flow_run: str
    asked_at: datetime
    until: datetime
    reminded_at: datetime

    @property
    def is_open(self) -> bool:
        """Whether nobody has decided and there is time left."""
        decision = self.version.tags.get("alignflow.decision", "taken back")
        return decision == "taken back" and datetime.now(UTC) < self.until

    @classmethod
    def of(cls, version: RegisteredVersion) -> "Request | None":
        """Return what the tags of a version say."""
        tags = {name.removeprefix(f"{_TAG}_"): value for name, value in version.tags.items()}
        if "until" not in tags:
            return None
        asked_at, until, reminded_at = (
            datetime.fromisoformat(tags[name]) for name in ("asked_at", "until", "reminded_at")
        )
        return cls(version, tags["run"], tags["flow_run"], asked_at, until, reminded_at)


def ask(
    registry: Registry, version: RegisteredVersion, *, run: str, flow_run: str, timeout: timedelta
) -> Request:
    """Have a version wait for a person, and tell Prefect's automations so.

    Args:
        registry: Holds the version.
        version: The version.
        run: Name of the run that asks.
        flow_run: Id of its flow run.
        timeout: Time to answer.

    Raises:
        RegistryError: MLflow failed.
    """
    now = datetime.now(UTC)
    request = Request(version, run, flow_run, now, now + timeout, now)
    tags = {
        _TAG: "wanted",
        f"{_TAG}_run": run,
        f"{_TAG}_flow_run": flow_run,
        f"{_TAG}_asked_at": now.isoformat(),
        f"{_TAG}_reminded_at": now.isoformat(),
        # The last one: without it there is no request.
        f"{_TAG}_until": request.until.isoformat(),
    }
    with registry_errors():
        registry.set_tags(version, tags)
    _tell("alignflow.approval.wanted", request, key=f"{run} {now}")
    return request


def find_request(registry: Registry, run: str) -> Request:
    """Return what a run asked a person to approve.

    Args:
        registry: Holds the version.
        run: Name of the run, or id of its flow run.

    Raises:
        InputError: No run of this name has asked.
        RegistryError: MLflow failed.
    """
    with registry_errors():
        found = [
            version
            for name in ("run", "flow_run")
            for version in registry.tagged(f"{_TAG}_{name}", run)
        ]
    request = Request.of(found[0]) if found else None
    if request is None:
        raise InputError(
            f"no run {run} has asked for approval; alignflow approvals lists those that wait."
        )
    return request


def open_requests(registry: Registry) -> list[Request]:
    """Return the versions of all models that wait for a person, the oldest request first.

    Raises:
        RegistryError: MLflow failed.
    """
    with registry_errors():
        versions = registry.tagged(_TAG, "wanted")
    requests = [request for request in map(Request.of, versions) if request and request.is_open]
    return sorted(requests, key=lambda request: request.asked_at)


def answer(
    registry: Registry, request: Request, author: Author, *, approve: bool, cache: Path
) -> Decision | None:
    """Promote a version that waits, or reject it for good.

    Args:
        registry: Holds the version.
        request: What waits.
        author: Who decides, and why.
        approve: Whether it may be promoted; else it stops being the candidate.
        cache: Folder for what is fetched from the store.

    Returns:
        The decision; None where it was decided so before.

    Raises:
        InputError: It was decided otherwise, or the time to answer is over.
        SafetyGateError: It no longer passes the gate beside the champion.
        RegistryError: MLflow failed.
    """
    version, decided = request.version, request.version.tags.get("alignflow.decision")
    if decided == ("promoted" if approve else "rejected"):
        return None
    if not request.is_open:
        by = version.tags.get("alignflow.decided_by")
        what = f"was {decided} by {by}" if decided else f"waited until {request.until:%c} UTC"
        raise InputError(f"{version.uri} {what}; run the recipe again to ask anew.")
    if approve:
        return promote(registry, version.name, version.version, author, cache=cache)
    return _reject(registry, version, author)


def _reject(registry: Registry, version: RegisteredVersion, author: Author) -> Decision | None:
    def plan(aliases: Mapping[str, str], number: int) -> Decision:
        if aliases.get(CHAMPION) == version.version:
            raise InputError(f"{version.uri} is the champion; alignflow rollback takes it back.")
        is_candidate = aliases.get(CANDIDATE) == version.version
        return make_decision(
            number=number,
            action="rejected",
            version=version.version,
            author=author,
            before=aliases,
            changes={CANDIDATE: None} if is_candidate else {},
        )

    return decide(registry, version.name, plan)


def let_go_on(request: Request, author: Author, *, approve: bool) -> None:
    """Start a suspended run again after the decision, so that it ends by it.

    The decision stands whether it can be started or not, so that costs no more than a warning.
    """
    if not PREFECT_API_URL.value():
        return
    form = {"decision": "approve" if approve else "reject", "by": author.by, "note": author.note}
    try:
        with get_client(sync_client=True) as client:
            state = client.read_flow_run(UUID(request.flow_run)).state
        if state is not None and state.is_paused():
            resume_flow_run(UUID(request.flow_run), run_input=form)
    except (httpx.HTTPError, PrefectException) as error:
        run_logger().warning("Prefect's run %s can't be resumed (%s).", request.flow_run, error)


def remind(registry: Registry, after: timedelta) -> list[Request]:
    """Post `alignflow.approval.reminder` for what has waited long since it was last told of.

    Returns:
        What it reminded of.

    Raises:
        RegistryError: MLflow failed.
    """
    now = datetime.now(UTC)
    due = [request for request in open_requests(registry) if now - request.reminded_at >= after]
    for request in due:
        _tell("alignflow.approval.reminder", request, key=f"{request.run} {request.reminded_at}")
        with registry_errors():
            registry.set_tags(request.version, {f"{_TAG}_reminded_at": now.isoformat()})
    return due


def _tell(event: str, request: Request, *, key: str) -> None:
    payload = {
        "model": request.version.name,
        "version": request.version.version,
        "run": request.run,
        "flow_run": request.flow_run,
        "until": request.until.isoformat(timespec="seconds"),
    }
    emit(event, f"alignflow.model.{request.version.name}", payload, key=key)
