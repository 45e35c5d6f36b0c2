"""The files that a judge is trained on: brought to this machine, and named by their content."""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from alignflow.evaluation.judges.config import DataFile, JudgeTraining
from alignflow.sources import fetch_file

JUDGE_KIND = "judge"
"""Kind of the artifact that a judge is."""
REVISION = 1
"""Raised by a commit that changes what training makes: `alignflow.artifacts.code_version`."""


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
        settings = self.config.model_dump(mode="json", exclude={"data", "references", "transfer"})
        return {**settings, "files": {file.role: file.sha256 for file in self.files}}


def fetch_training(config: JudgeTraining, cache: Path) -> FetchedTraining:
    """Bring the files of a training to this machine.

    Raises:
        DataError: There is no such file, or it can't be had.
    """
    fetched = {role: fetch_file(uri, cache) for role, uri in config.uris.items()}
    return FetchedTraining(
        config.replaced(**{role: str(file.path) for role, file in fetched.items()}),
        [
            DataFile(role=role, name=PurePosixPath(file.uri).name, sha256=file.sha256)
            for role, file in fetched.items()
        ],
        [{"uri": file.uri, "sha256": file.sha256, "bytes": file.size} for file in fetched.values()],
    )
