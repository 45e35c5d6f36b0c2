"""What follows a passed gate, and what a person decides, on a real registry and store."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from alignflow.errors import InputError, SafetyGateError
from alignflow.tasks.approval import Request, answer, ask, find_request, open_requests, remind
from alignflow.tasks.conclusion import conclude
from alignflow.tasks.config import RegistryConfig
from alignflow.tasks.decisions import Author
from alignflow.tasks.pipeline import Pipeline
from alignflow.tasks.promotion import promote, roll_back
from alignflow.tasks.report import Outcome
from alignflow.tasks.tracking import RegisteredVersion, Registry

Candidate = Callable[[float], RegisteredVersion]
ADA = Author("ada", "read fifty answers")


@pytest.fixture
def concluded(
    pipeline: Pipeline, name: str, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Outcome]:
    """Ends a run that registered a version, by what the recipe says on promotion."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", pipeline.tracker.uri)

    def end(version: RegisteredVersion, run: str = "demo-1", **registry: Any) -> Outcome:
        outcome = Outcome(
            run_id=run,
            passed=True,
            sentence="All is well.",
            reasons=[],
            scores=[],
            model_version=version.uri,
            export="file:///export",
            report=Path("report.html"),
            stages={},
            flow_run_id=pipeline.flow_run_id,
            prefect_url=None,
            mlflow_uri=pipeline.tracker.uri,
            mlflow_url=None,
        )
        config = RegistryConfig(model_name=name, **registry)
        return conclude(pipeline.recipe.replaced(registry=config), outcome)

    return end


def asked(registry: Registry, version: RegisteredVersion, hours: float = 1.0) -> Request:
    run = f"run of {version.name}"
    ask(registry, version, run=run, flow_run="f-1", timeout=timedelta(hours=hours))
    return find_request(registry, run)


def test_manual_promotes_nothing(
    candidate: Candidate, registry: Registry, name: str, concluded: Callable[..., Outcome]
) -> None:
    outcome = concluded(candidate(0.5))
    assert (outcome.sentence, outcome.decision) == ("All is well.", None)
    assert registry.aliases(name) == {"candidate": "1"}


def test_automatic_promotes_once(
    candidate: Candidate, registry: Registry, name: str, concluded: Callable[..., Outcome]
) -> None:
    for score, champion in ((0.5, {"champion": "1"}), (0.6, {"champion": "2", "previous": "1"})):
        outcome = concluded(candidate(score), promotion="automatic")
        assert outcome.decision == "promoted"
        assert registry.aliases(name) == champion
    version = registry.get(name, "champion")
    assert version is not None
    assert version.tags["alignflow.decided_by"] == "run demo-1"
    # A run of the same recipe does not bring back what was rolled back.
    roll_back(registry, name, Author("ada", "it rambles"))
    again = concluded(candidate(0.6), promotion="automatic")
    assert again.decision is None
    assert "was rolled back by ada: it rambles" in again.sentence
    assert registry.aliases(name) == {"champion": "1"}


def test_approved_candidate_is_promoted(
    pipeline: Pipeline,
    candidate: Candidate,
    registry: Registry,
    name: str,
    concluded: Callable[..., Outcome],
) -> None:
    version = candidate(0.5)
    outcome = concluded(version, run=f"a-{name}", promotion="approval")
    assert outcome.decision == "awaiting approval"
    assert f"alignflow approve a-{name}" in outcome.sentence
    assert registry.aliases(name) == {"candidate": "1"}
    # A later run of the same recipe waits for the same answer.
    later = concluded(candidate(0.5), run=f"b-{name}", promotion="approval")
    assert f"alignflow approve a-{name}" in later.sentence
    with pytest.raises(InputError, match="no run"):
        find_request(registry, f"b-{name}")

    request = find_request(registry, f"a-{name}")
    assert request.version.uri in {each.version.uri for each in open_requests(registry)}
    answer(registry, request, ADA, approve=True, cache=pipeline.cache)
    assert registry.aliases(name) == {"champion": "1"}
    decided = registry.get(name, "1")
    assert decided is not None
    assert decided.tags["alignflow.decided_by"] == "ada"
    assert decided.tags["alignflow.decision_note"] == "read fifty answers"
    # Said once more it is no decision, said otherwise it is refused.
    decided_on = find_request(registry, f"a-{name}")
    assert answer(registry, decided_on, ADA, approve=True, cache=pipeline.cache) is None
    with pytest.raises(InputError, match="was promoted by ada"):
        answer(registry, decided_on, ADA, approve=False, cache=pipeline.cache)
    assert concluded(version, promotion="approval").decision == "promoted"
    assert request.version.uri not in {each.version.uri for each in open_requests(registry)}


def test_rejected_candidate_is_refused_for_good(
    pipeline: Pipeline,
    candidate: Candidate,
    registry: Registry,
    name: str,
    concluded: Callable[..., Outcome],
) -> None:
    request = asked(registry, candidate(0.5))
    answer(registry, request, Author("ada", "worse on refusals"), approve=False, cache=Path("."))
    assert registry.aliases(name) == {}
    version = candidate(0.5)
    assert version.tags["alignflow.decision"] == "rejected"
    assert registry.aliases(name) == {}
    with pytest.raises(SafetyGateError, match="rejected by ada: worse on refusals") as refusal:
        concluded(version, promotion="approval")
    assert refusal.value.exit_code == 3
    assert refusal.value.outcome.model_version == version.uri
    with pytest.raises(SafetyGateError, match=r"ada rejected it \(worse on refusals\)"):
        promote(registry, name, "1", ADA, cache=pipeline.cache)


def test_approval_asks_the_gate_again(
    pipeline: Pipeline, candidate: Candidate, registry: Registry, name: str
) -> None:
    promote(registry, name, candidate(0.5).version, ADA, cache=pipeline.cache)
    request = asked(registry, candidate(0.45))
    promote(registry, name, candidate(0.6).version, ADA, cache=pipeline.cache)
    with pytest.raises(SafetyGateError, match="missed"):
        answer(registry, request, ADA, approve=True, cache=pipeline.cache)
    assert registry.aliases(name) == {"champion": "3", "previous": "1"}


def test_time_to_answer_ends(
    pipeline: Pipeline,
    candidate: Candidate,
    registry: Registry,
    name: str,
    concluded: Callable[..., Outcome],
) -> None:
    version = candidate(0.5)
    request = asked(registry, version, hours=0)
    with pytest.raises(InputError, match="waited until"):
        answer(registry, request, ADA, approve=True, cache=pipeline.cache)
    assert registry.aliases(name) == {"candidate": "1"}
    # Another run asks anew.
    concluded(version, run=f"new-{name}", promotion="approval", approval_timeout_h=2)
    left = find_request(registry, f"new-{name}").until - datetime.now(UTC)
    assert timedelta(hours=1.9) < left < timedelta(hours=2)


def test_reminders_come_once_in_their_time(
    candidate: Candidate, registry: Registry, name: str
) -> None:
    request = asked(registry, candidate(0.5))

    def reminded(hours: float) -> list[str]:
        found = [each.run for each in remind(registry, timedelta(hours=hours))]
        return [run for run in found if run == request.run]

    assert reminded(0.5) == []
    assert reminded(0) == [request.run]
    assert reminded(0.5) == []


def test_settings_that_do_nothing_are_refused(pipeline: Pipeline) -> None:
    with pytest.raises(ValueError, match="does nothing without promotion: approval"):
        RegistryConfig(model_name="x", approval_timeout_h=2)
    config = RegistryConfig(model_name="x", promotion="approval", approval_timeout_h=2)
    # A worker reads what a run was given, every key of it.
    for registry in (config, RegistryConfig(model_name="x")):
        recipe = pipeline.recipe.replaced(registry=registry)
        assert type(recipe).model_validate(recipe.model_dump(mode="json")) == recipe
