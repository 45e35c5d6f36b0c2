"""The evaluations of a run's models, read."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from alignflow.artifacts import Artifact
from alignflow.errors import AlignflowError
from alignflow.evaluation.gate import Measures
from alignflow.reporting.model import ROLES, ModelRole
from alignflow.tasks.evaluate import (
    champion_evaluation,
    comparable_measures,
    measures_of,
    read_scores,
)
from alignflow.tasks.logs import run_logger
from alignflow.tasks.pipeline import Pipeline
from alignflow.tasks.tracking import RegisteredVersion


@dataclass(frozen=True)
class Evaluated:
    """What the evaluation of one model says."""

    scores: Mapping[str, Any]
    """The content of its `scores.json`."""
    measures: Measures
    samples: list[dict[str, Any]]
    """Its answers to prompts, as JSON objects."""
    items: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """The items of each suite, as JSON objects."""

    @classmethod
    def read(cls, folder: Path, measures: Measures | None = None) -> Self:
        """Read an evaluation artifact, of its scores only those of the measures, where given."""
        scores = read_scores(folder)
        if measures is not None:
            kept = {name: value for name, value in scores["scores"].items() if name in measures}
            scores["scores"] = kept
        return cls(
            scores,
            measures if measures is not None else measures_of(folder),
            _read_lines(folder / "samples.jsonl"),
            {path.stem: _read_lines(path) for path in sorted(folder.glob("items/*.jsonl"))},
        )


def _read_lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def evaluated_models(
    pipeline: Pipeline,
    evaluations: Mapping[ModelRole, Artifact],
    champion: RegisteredVersion | None,
) -> dict[ModelRole, Evaluated]:
    """Read the evaluations of a run, and the champion's where it can be had, in their order."""
    models = {role: Evaluated.read(pipeline.local(of)) for role, of in evaluations.items()}
    if champion is not None:
        try:
            evaluation, folder = champion_evaluation(champion, pipeline.cache, pipeline.store.url)
            measures = comparable_measures(folder, evaluation, beside=evaluations["aligned"])
            models["champion"] = Evaluated.read(folder, measures)
        except AlignflowError as error:
            run_logger().warning("The champion can't be shown: %s", error)
    return {role: models[role] for role in ROLES if role in models}
