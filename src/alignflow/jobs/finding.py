"""Jobs of a workspace, whichever launcher started them."""

import json
from pathlib import Path

from alignflow.errors import InputError
from alignflow.jobs.base import Job
from alignflow.jobs.kubernetes.launcher import KubernetesJob
from alignflow.jobs.local import LocalJob
from alignflow.jobs.run_folder import RunFolder
from alignflow.jobs.slurm.launcher import SlurmJob


def find_job(folder: RunFolder) -> Job | None:
    """Return the job of a run folder, None where nothing was submitted."""
    try:
        launcher = json.loads(folder.handle.read_text(encoding="utf-8"))["launcher"]
    except FileNotFoundError:
        return None
    if launcher == "kubernetes":
        return KubernetesJob(folder)
    return SlurmJob(folder) if launcher == "slurm" else LocalJob(folder)


def run_folders(workspace: Path) -> list[RunFolder]:
    """Return the run folders of a workspace, the newest attempt last."""
    handles = workspace.glob("jobs/*/handle.json")
    newest_last = sorted(handles, key=lambda path: path.stat().st_mtime)
    return [RunFolder(path.parent) for path in newest_last]


def run_folder(workspace: Path, name: str) -> RunFolder:
    """Return the run folder of the job that a name, or the start of one, stands for.

    Raises:
        InputError: There is no such job, or there are several.
    """
    folders = run_folders(workspace)
    found = [folder for folder in folders if folder.path.name.startswith(name)]
    exact = [folder for folder in found if folder.path.name == name]
    if len(exact or found) == 1:
        return (exact or found)[0]
    if found:
        several = ", ".join(folder.path.name for folder in found)
        raise InputError(f"{name} may be any of {several}; write more of the name.")
    latest = ", ".join(folder.path.name for folder in folders[-3:]) or "none"
    raise InputError(f"there is no job {name} in {workspace.absolute()}; the latest: {latest}.")
