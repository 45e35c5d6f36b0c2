"""Promotion and rollback as a deployment's run does them, told in a sentence."""

from pathlib import Path

from alignflow.tasks.decisions import Author, Decision
from alignflow.tasks.logs import run_logger
from alignflow.tasks.promotion import promote, roll_back
from alignflow.tasks.tracking import Registry, tracking_uri


def promote_version(
    model: str, workspace: str, version: str | None, *, by: str, note: str, force: bool
) -> str:
    """Promote a version as `alignflow promote` does, and say what became of it.

    Raises:
        InputError: There is no such model, version or candidate, or it is forced without a note.
        SafetyGateError: The gate refuses it.
        RegistryError: MLflow failed.
    """
    folder = Path(workspace).absolute()
    decision = promote(
        Registry(tracking_uri(folder)),
        model,
        version,
        Author(by, note),
        cache=folder / "cache",
        force=force,
    )
    if decision is None:
        return _said(f"{model} version {version or '@candidate'} is the champion already.")
    return _said(promotion_sentence(model, decision))


def roll_back_champion(model: str, workspace: str, *, by: str, note: str) -> str:
    """Go back to the previous champion as `alignflow rollback` does, and say which one it is.

    Raises:
        InputError: There is no such model, or nothing to go back to.
        RegistryError: MLflow failed.
    """
    registry = Registry(tracking_uri(Path(workspace).absolute()))
    return _said(rollback_sentence(model, roll_back(registry, model, Author(by, note))))


def promotion_sentence(model: str, decision: Decision) -> str:
    """Say what a promotion did."""
    before = decision.before.get("champion")
    instead = f", instead of {before}" if before else ""
    forced = f" It was forced: {decision.forced}" if decision.forced else ""
    return f"{model} version {decision.version} is the champion now{instead}.{forced}"


def rollback_sentence(model: str, decision: Decision) -> str:
    """Say what a rollback did."""
    champion = decision.after["champion"]
    return f"{model} version {champion} is the champion again, instead of {decision.version}."


def _said(sentence: str) -> str:
    run_logger().info(sentence)
    return sentence
