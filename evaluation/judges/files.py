"""The files that a judge is trained on: brought to this machine, and named by their content."""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from alignflow.evaluation.judges.card import DataFile
from alignflow.evaluation.judges.config import JudgeTraining
from alignflow.sources import fetch_file

JUDGE_KIND = "judge"
"""Kind of the artifact that a judge is."""
REVISION = 1
"""Raised by a commit that changes what training makes: `alignflow.artifacts.code_version`."""

_ROLES: tuple[Literal["data", "references", "transfer"], ...] = ("data", "references", "transfer")


@dataclass(frozen=True)
class FetchedTraining:
    """A training whose files are on this machine."""

    config: JudgeTraining
    """With local paths."""
    files: list[DataFile]
    sources: list[dict[str, Any]]
    """The files as lineage names them."""

    @property
    def identity(self) -> dict[str, Any]:
        """What determines the judge, JSON types: settings, and files by their content."""
        settings = self.config.model_dump(mode="json", exclude=set(_ROLES))
        return {**settings, "files": {file.role: file.sha256 for file in self.files}}


def fetch_training(config: JudgeTraining, cache: Path) -> FetchedTraining:
    """Bring the files of a training to this machine.

    Raises:
        DataError: There is no such file, or it can't be had.
    """
    paths, files, sources = {}, [], []
    for role in _ROLES:
        uri = getattr(config, role)
        if uri is not None:
            file = fetch_file(uri, cache)
            paths[role] = str(file.path)
            files.append(DataFile(role=role, name=PurePosixPath(uri).name, sha256=file.sha256))
            sources.append({"uri": uri, "sha256": file.sha256, "bytes": file.size})
    return FetchedTraining(config.replaced(**paths), files, sources)
