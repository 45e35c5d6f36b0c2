"""Promotion and rollback as deployments, for automations and Prefect's page."""

from prefect import flow

from alignflow.tasks.champions import promote_version, roll_back_champion


@flow(name="promote", flow_run_name="promote-{model}")
def promote(
    model: str,
    workspace: str,
    version: str | None = None,
    by: str = "Prefect",
    note: str = "",
    force: bool = False,
) -> str:
    """Make a version the champion, if it passes the gate beside the present one.

    Args:
        model: Name of the registered model.
        workspace: Folder of the run, whose database is the registry where none is named.
        version: Its number; else the candidate.
        by: Who decides; nothing checks it.
        note: Why.
        force: Promote what the gate refuses; needs a note.
    """
    return promote_version(model, workspace, version, by=by, note=note, force=force)


@flow(name="rollback", flow_run_name="rollback-{model}")
def rollback(model: str, workspace: str, by: str = "Prefect", note: str = "") -> str:
    """Make the previous champion the champion again.

    Args:
        model: Name of the registered model.
        workspace: As for `promote`.
        by: Who decides; nothing checks it.
        note: Why.
    """
    return roll_back_champion(model, workspace, by=by, note=note)
