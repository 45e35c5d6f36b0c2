"""A pipeline on real parts: a store and MLflow's database in a temporary folder."""

from pathlib import Path

import pytest

from alignflow.artifacts import ArtifactStore
from alignflow.flows.config import Recipe
from alignflow.jobs.local import LocalLauncher
from alignflow.tasks.pipeline import Pipeline
from alignflow.tasks.tracking import Tracker
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
