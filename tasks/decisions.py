"""Decisions on registered models: one after another, whole or not at all, and never forgotten.

A decision is one write-once note in the model's journal, under the number after the last one's.
Whoever writes it first has decided; whoever comes second starts over from what the first one left.
So two decisions can't be made on one state, in whatever processes, on whatever machines, without a
lock that somebody could die with.

The aliases follow from the decision. Each is one write, so a process may be killed between two:
the decision then lacks its mark of being carried out, and the next command on the model carries it
out first. It does no harm to carry one out twice. Where MLflow refuses a write and the process
lives, a further decision takes the first one back.
"""

import random
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from alignflow.config import Config
from alignflow.errors import InputError, RegistryError
from alignflow.tasks.events import emit
from alignflow.tasks.tracking import Journal, Registry, registry_errors

CANDIDATE, CHAMPION, PREVIOUS = "candidate", "champion", "previous"
# The champion second: at no time is there none, nor a previous one that was never champion.
_ALIASES = (PREVIOUS, CHAMPION, CANDIDATE)

# With every character escaped they still fit into one note of the journal.
MAX_NAME_CHARS = 100
MAX_NOTE_CHARS = 1000
_MAX_REASON_CHARS = 1500
_MAX_TRIES = 20

Action = Literal["promoted", "rolled back", "rejected", "taken back"]


@dataclass(frozen=True)
class Author:
    """Who decides and why; nothing checks that they are who they say.

    Raises:
        InputError: There is no name, or a text is longer than the journal holds.
    """

    by: str
    note: str = ""

    def __post_init__(self) -> None:
        """Refuse what can't be kept whole."""
        if not 0 < len(self.by) <= MAX_NAME_CHARS:
            raise InputError(f"who decides is a name of 1 to {MAX_NAME_CHARS} characters.")
        if len(self.note) > MAX_NOTE_CHARS:
            raise InputError(
                f"the note has {len(self.note)} characters, and {MAX_NOTE_CHARS} are kept; "
                "shorten it."
            )


class Decision(Config):
    """What became of one version, as the journal keeps it."""

    id: str
    number: int
    """Place in the journal, from 1."""
    action: Action
    """What happened to the version."""
    version: str
    by: str
    """Self-declared."""
    at: datetime
    note: str
    before: Mapping[str, str]
    """Version by alias."""
    after: Mapping[str, str]
    forced: str = ""
    """Why the version was refused, where it was promoted all the same."""


Plan = Callable[[Mapping[str, str], int], Decision | None]
"""From the aliases as they stand and the next number to a decision; None where all is as wanted.

What it raises refuses the decision.
"""


def make_decision(
    *,
    number: int,
    action: Action,
    version: str,
    author: Author,
    before: Mapping[str, str],
    changes: Mapping[str, str | None],
    forced: str = "",
) -> Decision:
    """Return a decision that changes some aliases and leaves the others."""
    ours = {alias: before[alias] for alias in _ALIASES if alias in before}
    after = {**ours, **changes}
    return Decision(
        id=uuid.uuid4().hex,
        number=number,
        action=action,
        version=version,
        by=author.by,
        at=datetime.now(UTC),
        note=author.note,
        before=ours,
        after={alias: to for alias, to in after.items() if to is not None},
        forced=forced[:_MAX_REASON_CHARS],
    )


def decide(registry: Registry, name: str, plan: Plan) -> Decision | None:
    """Make a decision on a model and carry it out.

    Args:
        registry: Holds the model.
        name: Of the model.
        plan: Is asked again, with the new aliases, where somebody else decided meanwhile.

    Raises:
        ConfigError: There is no model of this name.
        RegistryError: MLflow failed, and the message says what that left; or others decided first
            at every try.
    """
    with registry_errors():
        journal = registry.journal(name)
        for _ in range(_MAX_TRIES):
            decisions = _settled(registry, name, journal)
            decision = plan(registry.aliases(name), len(decisions) + 1)
            if decision is None:
                return None
            if journal.write_once(_key(decision.number), decision.model_dump_json()):
                break
            time.sleep(random.uniform(0.05, 0.5))
        else:
            raise RegistryError(f"{name}: others decided first {_MAX_TRIES} times; try again.")
    _carry_out_or_take_back(registry, name, journal, decision)
    return decision


def settle(registry: Registry, name: str) -> list[Decision]:
    """Carry out what a killed process left undone; return all decisions on a model, oldest first.

    Raises:
        ConfigError: There is no model of this name.
        RegistryError: MLflow failed.
    """
    with registry_errors():
        return _settled(registry, name, registry.journal(name))


def _settled(registry: Registry, name: str, journal: Journal) -> list[Decision]:
    notes = journal.read()
    decisions = _decisions(notes)
    if decisions and _mark(decisions[-1].number) not in notes:
        _carry_out(registry, name, journal, decisions[-1])
    return decisions


def _decisions(notes: Mapping[str, str]) -> list[Decision]:
    return [Decision.model_validate_json(notes[key]) for key in sorted(notes) if key.isdigit()]


def _carry_out_or_take_back(
    registry: Registry, name: str, journal: Journal, decision: Decision
) -> None:
    try:
        with registry_errors():
            _carry_out(registry, name, journal, decision)
    except RegistryError as failure:
        try:
            with registry_errors():
                is_back = _take_back(registry, name, journal, decision, str(failure))
        except RegistryError:
            raise RegistryError(
                f"{failure} The decision on version {decision.version} of {name} stands in its "
                "journal, and the next command on the model carries it out."
            ) from None
        if is_back:
            raise RegistryError(f"{failure} The aliases of {name} are what they were.") from None


def _take_back(
    registry: Registry, name: str, journal: Journal, decision: Decision, why: str
) -> bool:
    """Undo a decision that can't be carried out; return False where somebody else has done so."""
    undo = make_decision(
        number=decision.number + 1,
        action="taken back",
        version=decision.version,
        author=Author(by="alignflow", note=why),
        before=decision.after,
        changes={alias: decision.before.get(alias) for alias in _ALIASES},
    )
    if not journal.write_once(_key(undo.number), undo.model_dump_json()):
        return False
    _carry_out(registry, name, journal, undo)
    return True


def _carry_out(registry: Registry, name: str, journal: Journal, decision: Decision) -> None:
    """Make aliases and tags what the decision says, tell Prefect, and mark it as carried out.

    Raises:
        MlflowException: MLflow failed.
    """
    _point_aliases(registry, name, decision)
    version = registry.get(name, decision.version)
    if version is not None:
        registry.set_tags(version, _tags(decision))
    event = f"alignflow.model.{decision.action.replace(' ', '-')}"
    emit(event, f"alignflow.model.{name}", {"model": name, **_told(decision)}, key=decision.id)
    journal.write_once(_mark(decision.number), decision.id)
    latest = _decisions(journal.read())[-1]
    if latest.number > decision.number:
        # Another process took this one for dead and went on: a late write may have crossed its own.
        _point_aliases(registry, name, latest)


def _point_aliases(registry: Registry, name: str, decision: Decision) -> None:
    standing = registry.aliases(name)
    for alias in _ALIASES:
        wanted, found = decision.after.get(alias), standing.get(alias)
        # A newer model may have become the candidate since.
        is_overtaken = alias == CANDIDATE and found not in (None, decision.before.get(alias))
        if wanted != found and not is_overtaken:
            registry.point(name, alias, wanted)


def _tags(decision: Decision) -> dict[str, str]:
    """Return what the version's page in MLflow shows of the decision."""
    return {
        "alignflow.decision": decision.action,
        "alignflow.decided_by": decision.by,
        "alignflow.decided_at": decision.at.isoformat(timespec="seconds"),
        "alignflow.decision_note": decision.note,
        "alignflow.decision_forced": decision.forced,
        "alignflow.champion_before": decision.before.get(CHAMPION, ""),
    }


def _told(decision: Decision) -> dict[str, str | int]:
    """Return what the event tells of the decision."""
    return {
        "number": decision.number,
        "version": decision.version,
        "champion": decision.after.get(CHAMPION, ""),
        "champion_before": decision.before.get(CHAMPION, ""),
        "by": decision.by,
        "note": decision.note,
        "forced": decision.forced,
    }


def _key(number: int) -> str:
    return f"{number:06}"


def _mark(number: int) -> str:
    return f"{number:06}.carried-out"
