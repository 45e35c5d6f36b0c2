"""Promotion and rollback: which version of a model is the champion, and why it may be.

A version that passed the gate is judged once more at the moment of its promotion, because the
champion may be another one by then. The verdict's own rules and scores are in the store, and so are
those of the present champion: nothing is computed again.
"""

from collections.abc import Mapping
from pathlib import Path

from alignflow.artifacts import Artifact, ArtifactStore
from alignflow.errors import AlignflowError, ConfigError, InputError, SafetyGateError
from alignflow.evaluation.config import GateConfig
from alignflow.evaluation.gate import Measures, Verdict
from alignflow.lineage import find_artifact
from alignflow.tasks.decisions import (
    CANDIDATE,
    CHAMPION,
    PREVIOUS,
    Author,
    Decision,
    decide,
    make_decision,
)
from alignflow.tasks.evaluate import (
    JudgedAnswers,
    champion_evaluation,
    comparable_measures,
    judge_evaluations,
)
from alignflow.tasks.logs import run_logger
from alignflow.tasks.tracking import RegisteredVersion, Registry


def promote(
    registry: Registry,
    name: str,
    version: str | None,
    author: Author,
    *,
    cache: Path,
    force: bool = False,
) -> Decision | None:
    """Make a version the champion and the champion of before `previous`.

    Args:
        registry: Holds the model.
        name: Of the model.
        version: A number; None takes the candidate.
        author: Who promotes it, and why.
        cache: Folder for what is fetched from the store.
        force: Promote it though it is refused; what it was refused for is recorded.

    Returns:
        The decision; None where the version is the champion already.

    Raises:
        InputError: There is no such model, version or candidate, or it is forced without a note.
        SafetyGateError: The version doesn't pass the gate beside the present champion, can't be
            compared with it, or was rejected.
        RegistryError: MLflow failed; the message says what that left.
    """
    if force and not author.note:
        raise InputError("--force goes with --note, which says why.")

    def plan(aliases: Mapping[str, str], number: int) -> Decision | None:
        wanted = _find_version(registry, name, version, aliases)
        champion = aliases.get(CHAMPION)
        if wanted.version == champion:
            return None
        why = _why_refused(registry, wanted, champion, cache)
        if why and not force:
            raise SafetyGateError(f"{wanted.uri} is not promoted: {why}")
        changes: dict[str, str | None] = {CHAMPION: wanted.version, PREVIOUS: champion}
        if aliases.get(CANDIDATE) == wanted.version:
            changes[CANDIDATE] = None
        return make_decision(
            number=number,
            action="promoted",
            version=wanted.version,
            author=author,
            before=aliases,
            changes=changes,
            forced=why,
        )

    return decide(registry, name, plan)


def roll_back(registry: Registry, name: str, author: Author) -> Decision:
    """Make the previous champion the champion again.

    There is no previous one afterwards: a second rollback must not bring back what the first one
    took away.

    Args:
        registry: Holds the model.
        name: Of the model.
        author: Who does it, and why.

    Raises:
        InputError: There is no such model, or nothing to go back to.
        RegistryError: As for `promote`.
    """

    def plan(aliases: Mapping[str, str], number: int) -> Decision:
        if CHAMPION not in aliases or PREVIOUS not in aliases:
            raise InputError(
                f"{name} has no previous champion to go back to; alignflow promote {name} VERSION "
                "makes another version the champion."
            )
        return make_decision(
            number=number,
            action="rolled back",
            version=aliases[CHAMPION],
            author=author,
            before=aliases,
            changes={CHAMPION: aliases[PREVIOUS], PREVIOUS: None},
        )

    decision = decide(registry, name, plan)
    if decision is None:
        raise RuntimeError("a rollback always changes something")
    return decision


def _find_version(
    registry: Registry, name: str, version: str | None, aliases: Mapping[str, str]
) -> RegisteredVersion:
    number = version or aliases.get(CANDIDATE)
    if number is None:
        raise InputError(f"{name} has no candidate; name the version to promote.")
    found = registry.get(name, number)
    if found is None:
        raise InputError(f"{name} has no version {number}; give the number of one that it has.")
    return found


def _why_refused(
    registry: Registry, version: RegisteredVersion, champion: str | None, cache: Path
) -> str:
    """Say why a version may not become the champion; nothing where it may."""
    if version.tags.get("alignflow.decision") == "rejected":
        by, note = (version.tags.get(f"alignflow.{k}") for k in ("decided_by", "decision_note"))
        return f"{by} rejected it ({note})."
    beside = registry.get(version.name, champion) if champion else None
    try:
        verdict = judge_anew(version, beside, cache)
    except AlignflowError as error:
        return f"its verdict can't be made anew ({error})"
    return " ".join(rule.reason for rule in verdict.rules if not rule.passed)


def judge_anew(
    version: RegisteredVersion, champion: RegisteredVersion | None, cache: Path
) -> Verdict:
    """Return the gate's verdict on a registered version beside the champion of today.

    Args:
        version: Carries the tags by which its verdict is found: rules and evaluations.
        champion: The version to compare with; None where there is none.
        cache: Folder for what is fetched.

    Raises:
        ConfigError: alignflow has not judged the version.
        StoreError: The store can't be read, or doesn't hold its verdict or evaluations any more.
        CorruptArtifactError: One of them is damaged.
    """
    digest, url = (version.tags.get(f"alignflow.{key}") for key in ("verdict_digest", "store"))
    if digest is None or url is None:
        raise ConfigError(f"{version.uri} has no verdict of alignflow.")
    store = ArtifactStore(url)
    tags = {"alignflow.digest": digest}
    if "alignflow.verdict_key" in version.tags:
        tags["alignflow.key"] = version.tags["alignflow.verdict_key"]
    judged = find_artifact(store, tags).manifest
    parents = {
        role: store.get(parent.digest)
        for role, parent in judged.parents.items()
        if role != CHAMPION
    }
    folders = {role: store.fetch(parent, cache) for role, parent in parents.items()}
    answers = None
    if "duels" in parents:
        answers = JudgedAnswers.read(parents["duels"], folders.pop("duels"), champion)
    # Beside the rules it names the champion of that day, where that one's scores couldn't be had.
    config = {key: value for key, value in judged.config.items() if key in GateConfig.model_fields}
    rules = GateConfig.model_validate(config)
    of_champion = _measures_of(champion, rules, parents["aligned"], cache, url)
    return judge_evaluations(rules, folders, of_champion, answers)


def _measures_of(
    champion: RegisteredVersion | None, rules: GateConfig, aligned: Artifact, cache: Path, url: str
) -> Measures | None:
    """Return what rules compare with; nothing, with which none is kept, where it can't be had."""
    if champion is None or not any(rule.asks_for_champion for rule in rules.rules.values()):
        return None
    try:
        evaluation, folder = champion_evaluation(champion, cache, url)
        return comparable_measures(folder, evaluation, beside=aligned)
    except AlignflowError as error:
        run_logger().warning("The champion can't be compared with: %s", error)
        return {}
