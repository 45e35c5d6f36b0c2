"""Promotion and rollback on a real registry (SQLite) and store."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from mlflow import MlflowClient

from alignflow.errors import InputError, RegistryError, SafetyGateError
from alignflow.tasks.decisions import Author, _carry_out, settle
from alignflow.tasks.pipeline import Pipeline
from alignflow.tasks.promotion import promote, roll_back
from alignflow.tasks.tracking import RegisteredVersion, Registry

Candidate = Callable[[float], RegisteredVersion]

ADA = Author("ada")


def test_champion_moves_and_goes_back(
    pipeline: Pipeline, candidate: Candidate, registry: Registry, name: str
) -> None:
    cache = pipeline.cache
    candidate(0.50)
    assert promote(registry, name, None, ADA, cache=cache) is not None
    assert registry.aliases(name) == {"champion": "1"}
    candidate(0.55)
    promote(registry, name, None, Author("bob", "better"), cache=cache)
    assert registry.aliases(name) == {"champion": "2", "previous": "1"}
    version = registry.get(name, "champion")
    assert version is not None
    assert version.tags["alignflow.decision"] == "promoted"
    assert version.tags["alignflow.decided_by"] == "bob"
    assert version.tags["alignflow.decision_note"] == "better"
    assert version.tags["alignflow.champion_before"] == "1"
    # Once more is no decision.
    assert promote(registry, name, "2", ADA, cache=cache) is None

    roll_back(registry, name, Author("ada", "it rambles"))
    assert registry.aliases(name) == {"champion": "1"}
    with pytest.raises(InputError, match="no previous champion"):
        roll_back(registry, name, ADA)
    decisions = settle(registry, name)
    assert [(d.number, d.action, d.version, d.by) for d in decisions] == [
        (1, "promoted", "1", "ada"),
        (2, "promoted", "2", "bob"),
        (3, "rolled back", "2", "ada"),
    ]


def test_journal_keeps_what_was_written(
    pipeline: Pipeline, candidate: Candidate, registry: Registry, name: str
) -> None:
    candidate(0.50)
    promote(registry, name, None, ADA, cache=pipeline.cache)
    journal = registry.journal(name)
    noted = journal.read()["000001"]
    assert not journal.write_once("000001", "something else")
    assert journal.write_once("000001", noted)
    assert journal.read()["000001"] == noted
    run = MlflowClient(pipeline.tracker.uri).get_run(journal.run_id)
    assert run.data.tags["alignflow.model"] == name


def test_late_writes_are_put_right(
    pipeline: Pipeline, candidate: Candidate, registry: Registry, name: str
) -> None:
    candidate(0.50)
    first = promote(registry, name, None, ADA, cache=pipeline.cache)
    assert first is not None
    candidate(0.55)
    promote(registry, name, None, ADA, cache=pipeline.cache)
    # The first process was taken for dead, and comes back when the second is done.
    _carry_out(registry, name, registry.journal(name), first)
    assert registry.aliases(name) == {"champion": "2", "previous": "1"}


def test_model_that_somebody_else_made_gets_a_journal(
    pipeline: Pipeline, registry: Registry, name: str
) -> None:
    MlflowClient(pipeline.tracker.uri).create_registered_model(name)
    registry.add(name, "s3://elsewhere/model", run_id=pipeline.tracker.run.run_id, tags={})
    promote(registry, name, "1", Author("ada", "a start"), cache=pipeline.cache, force=True)
    assert [decision.action for decision in settle(registry, name)] == ["promoted"]
    assert registry.aliases(name) == {"champion": "1"}


def test_candidate_is_judged_beside_the_champion_of_today(
    pipeline: Pipeline, candidate: Candidate, registry: Registry, name: str
) -> None:
    cache = pipeline.cache
    candidate(0.50)
    promote(registry, name, None, ADA, cache=cache)
    # Both pass beside version 1: 0.45 and 0.62 are at least 0.5 - 0.1.
    candidate(0.45)
    candidate(0.62)
    promote(registry, name, "3", ADA, cache=cache)
    # Beside version 3 the second needs 0.62 - 0.1.
    with pytest.raises(SafetyGateError, match=r"0\.45: at least 0\.52 .*missed"):
        promote(registry, name, "2", ADA, cache=cache)
    assert registry.aliases(name) == {"champion": "3", "previous": "1"}
    with pytest.raises(InputError, match="--note"):
        promote(registry, name, "2", ADA, cache=cache, force=True)
    promote(registry, name, "2", Author("ada", "a customer waits"), cache=cache, force=True)
    assert registry.aliases(name) == {"champion": "2", "previous": "3"}
    forced = settle(registry, name)[-1]
    assert "missed" in forced.forced
    version = registry.get(name, "2")
    assert version is not None
    assert version.tags["alignflow.decision_forced"] == forced.forced


def test_what_cannot_be_compared_is_refused(
    pipeline: Pipeline, candidate: Candidate, registry: Registry, name: str
) -> None:
    first = candidate(0.50)
    promote(registry, name, None, ADA, cache=pipeline.cache)
    candidate(0.60)
    registry.set_tags(first, {"alignflow.evaluation": "a" * 64})
    with pytest.raises(SafetyGateError, match="champion model is missing"):
        promote(registry, name, None, ADA, cache=pipeline.cache)
    alien = registry.add(name, "s3://elsewhere/model", run_id=pipeline.tracker.run.run_id, tags={})
    with pytest.raises(SafetyGateError, match="no verdict of alignflow"):
        promote(registry, name, alien.version, ADA, cache=pipeline.cache)


def test_a_decided_version_is_not_the_candidate_again(
    pipeline: Pipeline, candidate: Candidate, registry: Registry, name: str
) -> None:
    candidate(0.50)
    promote(registry, name, None, ADA, cache=pipeline.cache)
    # The recipe is run again.
    assert candidate(0.50).version == "1"
    assert registry.aliases(name) == {"champion": "1"}


@pytest.mark.parametrize("version", ["9", None])
def test_what_is_not_there_is_bad_input(
    pipeline: Pipeline, candidate: Candidate, registry: Registry, name: str, version: str | None
) -> None:
    with pytest.raises(InputError, match="no model of this name"):
        promote(registry, name, version, ADA, cache=pipeline.cache)
    candidate(0.50)
    promote(registry, name, "1", ADA, cache=pipeline.cache)
    with pytest.raises(InputError, match="no version 9" if version else "no candidate"):
        promote(registry, name, version, ADA, cache=pipeline.cache)


class Database:
    """MLflow's own database, made to refuse writes of some rows."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def run(self, statement: str) -> None:
        with closing(sqlite3.connect(self.path)) as connection, connection:
            connection.execute(statement)

    def refuse(self, trigger: str, write: str, condition: str) -> None:
        self.run(
            f"CREATE TRIGGER {trigger} BEFORE {write} WHEN {condition} "
            "BEGIN SELECT RAISE(ABORT, 'the disk is full'); END"
        )


@pytest.fixture
def failing(database: Path) -> Iterator[Database]:
    failing = Database(database / "mlflow.db")
    yield failing
    for trigger in ("champion", "notes"):
        failing.run(f"DROP TRIGGER IF EXISTS {trigger}")


def test_failure_between_two_aliases_is_taken_back(
    pipeline: Pipeline, candidate: Candidate, registry: Registry, name: str, failing: Database
) -> None:
    candidate(0.50)
    promote(registry, name, None, ADA, cache=pipeline.cache)
    candidate(0.60)
    failing.refuse(
        "champion",
        "UPDATE ON registered_model_aliases",
        f"NEW.alias = 'champion' AND NEW.name = '{name}'",
    )
    with pytest.raises(RegistryError, match=r"the disk is full.*are what they were"):
        promote(registry, name, None, ADA, cache=pipeline.cache)
    assert registry.aliases(name) == {"champion": "1", "candidate": "2"}
    assert [d.action for d in settle(registry, name)] == ["promoted", "promoted", "taken back"]
    failing.run("DROP TRIGGER champion")
    promote(registry, name, None, ADA, cache=pipeline.cache)
    assert registry.aliases(name) == {"champion": "2", "previous": "1"}


def test_what_cannot_be_taken_back_is_finished_by_the_next_command(
    pipeline: Pipeline, candidate: Candidate, registry: Registry, name: str, failing: Database
) -> None:
    candidate(0.50)
    promote(registry, name, None, ADA, cache=pipeline.cache)
    candidate(0.60)
    failing.refuse(
        "champion",
        "UPDATE ON registered_model_aliases",
        f"NEW.alias = 'champion' AND NEW.name = '{name}'",
    )
    failing.refuse("notes", "INSERT ON params", "NEW.key = '000003'")
    with pytest.raises(RegistryError, match="the next command on the model carries it out"):
        promote(registry, name, None, ADA, cache=pipeline.cache)
    # One alias of two: this is what the next command finds.
    assert registry.aliases(name) == {"champion": "1", "previous": "1", "candidate": "2"}
    for trigger in ("champion", "notes"):
        failing.run(f"DROP TRIGGER {trigger}")
    settle(registry, name)
    assert registry.aliases(name) == {"champion": "2", "previous": "1"}


@pytest.mark.parametrize(("by", "note"), [("", ""), ("a" * 101, ""), ("ada", "x" * 1001)])
def test_what_the_journal_cannot_hold_is_bad_input(by: str, note: str) -> None:
    with pytest.raises(InputError):
        Author(by, note)
