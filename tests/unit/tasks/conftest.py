"""A pipeline on real parts: a store and MLflow's database in a temporary folder."""

import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from alignflow.artifacts import Artifact, ArtifactStore, code_version, stage_key
from alignflow.evaluation.measures import Items, Measure, write_measures
from alignflow.flows.config import Recipe
from alignflow.jobs.local import LocalLauncher
from alignflow.tasks.evaluate import judge_model
from alignflow.tasks.pipeline import Pipeline
from alignflow.tasks.register import find_champion, register_model
from alignflow.tasks.tracking import RegisteredVersion, Registry, Tracker
from alignflow.terminal import current_display


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of one MLflow database: making its tables takes seconds."""
    return tmp_path_factory.mktemp("mlflow")


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """A recipe of two empty training sets, in a workspace of its own."""
    for name in ("demonstrations", "preferences"):
        (tmp_path / f"{name}.jsonl").touch()
    return Recipe.model_validate(
        {
            "name": "demo",
            "workspace": str(tmp_path / "workspace"),
            "model": {"source": str(tmp_path / "model")},
            "data": {
                name: {"sources": [str(tmp_path / f"{name}.jsonl")]}
                for name in ("demonstrations", "preferences")
            },
            "registry": {"model_name": "assistant"},
        }
    )


@pytest.fixture
def pipeline(recipe: Recipe, database: Path) -> Pipeline:
    """A run of the recipe whose parent run in MLflow is open."""
    tracker = Tracker(
        uri=f"sqlite:///{database / 'mlflow.db'}", experiment="unit", artifact_root=database
    )
    tracker.start_pipeline("demo-1", {})
    workspace = Path(recipe.workspace)
    return Pipeline(
        recipe=recipe,
        run_id="demo-1",
        flow_run_id="00000000-0000-0000-0000-0000000abcde",
        workspace=workspace,
        store=ArtifactStore(str(workspace / "artifacts")),
        launcher=LocalLauncher(),
        tracker=tracker,
        display=current_display(),
    )


@pytest.fixture
def name(pipeline: Pipeline, request: pytest.FixtureRequest) -> str:
    """A registered model of the test's own, whose gate asks to come within 0.1 of the champion."""
    name = re.sub(r"\W", "-", request.node.name)
    rule = {
        "score": "preference/logprob_accuracy",
        "compared_with": "champion",
        "max_drop": 0.1,
    }
    pipeline.recipe = pipeline.recipe.replaced(
        registry=pipeline.recipe.registry.replaced(model_name=name),
        gate={"rules": {"keeps_up": rule}},
    )
    return name


@pytest.fixture
def registry(pipeline: Pipeline) -> Registry:
    return pipeline.tracker.registry


@pytest.fixture
def candidate(pipeline: Pipeline, name: str) -> Callable[[float], RegisteredVersion]:
    """Judges and registers a model with this score, as a run does."""

    def register(score: float) -> RegisteredVersion:
        model = _publish(pipeline, "dpo", score)
        evaluation = _publish(pipeline, "evaluation", score)
        verdict, artifact = judge_model.fn(
            pipeline, {"aligned": evaluation}, find_champion(pipeline)
        )
        return register_model.fn(
            pipeline,
            model,
            parent=model,
            datasets={},
            evaluation=evaluation,
            verdict=verdict,
            verdict_artifact=artifact,
        )

    return register


def _publish(pipeline: Pipeline, kind: str, score: float) -> Artifact:
    """Publish what stands for a model, or its evaluation on one item."""
    folder = Path(tempfile.mkdtemp(dir=pipeline.workspace.parent))
    scores = {"preference/logprob_accuracy": score}
    (folder / "scores.json").write_text(json.dumps({"of": kind, "scores": scores, "limited": []}))
    measures = {name: Measure.mean(Items.of(["pair"]), [value]) for name, value in scores.items()}
    write_measures(folder / "measures.json", measures)
    key = stage_key(kind, {"score": score}, {}, code_version(1))
    return pipeline.store.publish(folder, kind=kind, key=key, code_version=code_version(1))
