"""What follows a passed gate, as the recipe says: nothing, a promotion, or a question to a person.

A run of a deployment is suspended while it waits: its process ends, Prefect's page shows a form,
and the answer starts the run again, which finds every stage in the store. Prefect can start a run
again only where a deployment says how; any other run ends here, and `alignflow approve` promotes
what it registered.
"""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal
from uuid import UUID

from prefect import runtime
from prefect.client.orchestration import get_client
from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from pydantic import Field

from alignflow.errors import SafetyGateError
from alignflow.tasks.approval import Request, answer, ask
from alignflow.tasks.config import RunConfig
from alignflow.tasks.decisions import CANDIDATE, CHAMPION, MAX_NAME_CHARS, MAX_NOTE_CHARS, Author
from alignflow.tasks.events import emit
from alignflow.tasks.promotion import promote
from alignflow.tasks.report import Outcome
from alignflow.tasks.tracking import RegisteredVersion, Registry, registry_errors, tracking_uri

_PAUSE_KEY = "approval"
_MAX_REASON_CHARS = 2000


class Approval(RunInput):
    """The form on Prefect's page of a suspended run."""

    decision: Literal["approve", "reject"] = "reject"
    by: str = Field(
        min_length=1, max_length=MAX_NAME_CHARS, description="Who decides; nothing checks it."
    )
    note: str = Field(default="", max_length=MAX_NOTE_CHARS, description="Why.")


def conclude(recipe: RunConfig, outcome: Outcome) -> Outcome:
    """Promote what passed the gate, or have a person asked, as `registry.promotion` says.

    It is called by the flow itself, after the run is closed: a suspended run ends here.

    Args:
        recipe: The pipeline.
        outcome: What the run came to; its model is registered.

    Raises:
        SafetyGateError: A person rejected the model, or it no longer passes beside the champion.
        RegistryError: MLflow failed.
    """
    if recipe.registry.promotion == "manual":
        return outcome
    workspace = Path(recipe.workspace).absolute()
    registry, cache = Registry(tracking_uri(workspace)), workspace / "cache"
    version = _registered_version(registry, recipe.registry.model_name, outcome)
    try:
        if CHAMPION in version.aliases:
            return _concluded(outcome, "promoted", "is the champion")
        if "alignflow.decision" in version.tags and CANDIDATE not in version.aliases:
            return _as_decided(version, outcome)
        if recipe.registry.promotion == "automatic":
            author = Author(f"run {outcome.run_id}", "the recipe promotes what passes the gate")
            promote(registry, version.name, version.version, author, cache=cache)
            return _concluded(outcome, "promoted", "is the champion now")
        return _approved(recipe, outcome, registry, version, cache)
    except SafetyGateError as refusal:
        refused = outcome.replaced(passed=False, sentence=str(refusal))
        raise SafetyGateError(str(refusal), outcome=refused) from None


def tell_of_refusal(recipe: RunConfig, outcome: Outcome) -> None:
    """Tell Prefect's automations that the gate refused a model."""
    name = recipe.registry.model_name
    payload = {
        "model": name,
        "run": outcome.run_id,
        "flow_run": outcome.flow_run_id,
        "reasons": " ".join(outcome.reasons)[:_MAX_REASON_CHARS],
    }
    emit("alignflow.gate.refused", f"alignflow.model.{name}", payload, key=outcome.flow_run_id)


def _registered_version(registry: Registry, name: str, outcome: Outcome) -> RegisteredVersion:
    with registry_errors():
        version = registry.get(name, str(outcome.model_version).rpartition("/")[2])
    if version is None:
        raise RuntimeError(f"{outcome.model_version} is no longer in the registry")
    return version


def _as_decided(version: RegisteredVersion, outcome: Outcome) -> Outcome:
    """Keep to what was decided on a version: a later run changes nothing about it."""
    decision = version.tags["alignflow.decision"]
    said = f"{version.tags['alignflow.decided_by']}: {version.tags['alignflow.decision_note']}"
    if decision == "rejected":
        raise SafetyGateError(f"{version.uri} was rejected by {said}")
    return _concluded(outcome, None, f"was {decision} by {said}")


def _concluded(
    outcome: Outcome, decision: Literal["promoted", "awaiting approval"] | None, what: str
) -> Outcome:
    sentence = f"{outcome.sentence} {outcome.model_version} {what.rstrip('.')}."
    return outcome.replaced(sentence=sentence, decision=decision)


def _approved(
    recipe: RunConfig,
    outcome: Outcome,
    registry: Registry,
    version: RegisteredVersion,
    cache: Path,
) -> Outcome:
    """Ask a person, and wait for the answer where the run can be suspended."""
    request = Request.of(version)
    if request is None or not request.is_open:
        request = ask(
            registry,
            version,
            run=outcome.run_id,
            flow_run=outcome.flow_run_id,
            timeout=timedelta(hours=recipe.registry.approval_timeout_h),
        )
    if request.flow_run != outcome.flow_run_id or runtime.deployment.id is None:
        what = f"awaits approval until {request.until:%Y-%m-%d %H:%M} UTC: alignflow approve"
        return _concluded(outcome, "awaiting approval", f"{what} {request.run} --note WHY")
    reasons = "\n".join(f"- {reason}" for reason in outcome.reasons)
    form = suspend_flow_run(
        wait_for_input=Approval.with_initial_data(
            description=f"## Promote {version.uri}?\n\n{outcome.sentence}\n\n{reasons}"
        ),
        timeout=max(int((request.until - datetime.now(UTC)).total_seconds()), 1),
        key=_PAUSE_KEY,
    )
    author = Author(form.by, form.note)
    answer(registry, request, author, approve=form.decision == "approve", cache=cache)
    if form.decision == "reject":
        raise SafetyGateError(f"{version.uri} was rejected by {author.by}: {author.note}")
    return _concluded(outcome, "promoted", f"is the champion now, approved by {author.by}")


def was_suspended() -> bool:
    """Whether the flow run that calls has waited for approval before.

    What it was told to compute anew it has computed then.
    """
    with get_client(sync_client=True) as client:
        flow_run = client.read_flow_run(UUID(str(runtime.flow_run.id)))
    return _PAUSE_KEY in (flow_run.empirical_policy.pause_keys or ())
