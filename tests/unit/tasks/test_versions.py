"""A new version of a set against the last one that was accepted."""

from pathlib import Path

import pytest

from alignflow.artifacts import Artifact, ArtifactStore, code_version, stage_key
from alignflow.data_validation.config import SetExpectations
from alignflow.errors import DataError
from alignflow.tasks.pipeline import Pipeline
from alignflow.tasks.versions import LENGTHS, accept_version

STRICT = SetExpectations(severities={"lengths_stable": "critical"})


def published(store: ArtifactStore, folder: Path, lengths: list[int]) -> Artifact:
    folder.mkdir()
    (folder / "card.json").write_text(str(lengths))
    return store.publish(
        folder,
        kind="dataset",
        key=stage_key("dataset", {"lengths": lengths}, {}, code_version(1)),
        code_version=code_version(1),
        details={LENGTHS: {"prompt_chars": [0, 100], "response_chars": lengths}},
    )


def test_a_version_that_moved_is_noted_or_refused(pipeline: Pipeline, tmp_path: Path) -> None:
    store = pipeline.store
    first = published(store, tmp_path / "first", [0, 90, 10])
    near = published(store, tmp_path / "near", [0, 80, 20])
    far = published(store, tmp_path / "far", [0, 10, 90])

    accept_version(pipeline, "preferences", first, STRICT)
    assert pipeline.drifts == {}  # there is nothing to compare with
    accept_version(pipeline, "preferences", near, STRICT)
    assert pipeline.drifts["preferences"].success
    with pytest.raises(DataError, match=f"since the version {near.digest[:12]}"):
        accept_version(pipeline, "preferences", far, STRICT)
    latest = store.latest("demo-preferences")
    assert latest is not None
    assert latest.digest == near.digest

    accept_version(pipeline, "preferences", far, SetExpectations())
    assert not pipeline.drifts["preferences"].success
    assert pipeline.drifts["preferences"].severity == "warning"
    latest = store.latest("demo-preferences")
    assert latest is not None
    assert latest.digest == far.digest


def test_sets_of_other_names_are_other_sets(pipeline: Pipeline, tmp_path: Path) -> None:
    first = published(pipeline.store, tmp_path / "first", [0, 90, 10])
    far = published(pipeline.store, tmp_path / "far", [0, 10, 90])
    accept_version(pipeline, "preferences", first, STRICT)
    accept_version(pipeline, "demonstrations", far, STRICT)
    assert pipeline.store.latest("demo-unpaired") is None
