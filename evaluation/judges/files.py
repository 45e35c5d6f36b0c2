"""The files that a judge is trained on: brought to this machine, and named by their content."""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from alignflow.evaluation.judges.config import (
    DataFile,
    JudgeTraining,
    LanguageModelUsed,
    TrainingJob,
)
from alignflow.model_source import resolve_model
from alignflow.sources import fetch_file

JUDGE_KIND = "judge"
"""Kind of the artifact that a judge is."""
REVISION = 3
"""Raised by a commit that changes what training makes: `alignflow.artifacts.code_version`."""


@dataclass(frozen=True)
class FetchedTraining:
    """A training whose files are on this machine."""

    config: JudgeTraining
    """With local paths."""
    files: list[DataFile]
    sources: list[dict[str, Any]]
    """The files as lineage names them."""
    language_model: LanguageModelUsed | None = None
    """Whose states the judge reads, if it does."""
    model: Path | None = None
    """That model on this machine."""

    @property
    def job(self) -> TrainingJob | None:
        """The job that trains a judge which reads a language model; None without one."""
        if self.model is None or self.language_model is None:
            return None
        return TrainingJob(
            training=self.config,
            model=self.model,
            files=self.files,
            language_model=self.language_model,
        )

    @property
    def identity(self) -> dict[str, Any]:
        """What determines the judge, JSON types: settings, and files by their content."""
        local = {"data", "references", "transfer", "model", "revision"}
        settings = self.config.model_dump(mode="json", exclude=local)
        model = self.language_model.files if self.language_model else None
        files = {file.role: file.sha256 for file in self.files}
        return {**settings, "files": files, "language_model": model}


def fetch_training(config: JudgeTraining, cache: Path) -> FetchedTraining:
    """Bring the files of a training to this machine.

    Raises:
        ConfigError: The package of the language model isn't installed.
        DataError: There is no such file or model, or it can't be had.
    """
    fetched = {role: fetch_file(uri, cache) for role, uri in config.uris.items()}
    local = {role: str(file.path) for role, file in fetched.items()}
    sources = [
        {"uri": file.uri, "sha256": file.sha256, "bytes": file.size} for file in fetched.values()
    ]
    used = path = None
    if config.model is not None:
        model = resolve_model(config.model, revision=config.revision, cache=cache)
        path = model.path
        used = LanguageModelUsed(name=config.model, files=dict(model.identity))
        sources += [
            {"uri": f"{config.model}#{name}", "sha256": digest}
            for name, digest in model.identity.items()
        ]
    return FetchedTraining(
        config.replaced(**local),
        [
            DataFile(role=role, name=PurePosixPath(file.uri).name, sha256=file.sha256)
            for role, file in fetched.items()
        ],
        sources,
        used,
        path,
    )
