"""The gate's look at the champion, whose run may have used another store."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from alignflow.artifacts import (
    Artifact,
    ArtifactStore,
    Manifest,
    ParentRef,
    code_version,
    files_digest,
    stage_key,
)
from alignflow.lineage import find_artifact
from alignflow.tasks.evaluate import comparable_scores, judge_model
from alignflow.tasks.pipeline import Pipeline
from alignflow.tasks.tracking import RegisteredVersion


def publish_scores(store: ArtifactStore, folder: Path, seed: int, score: float) -> Artifact:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "scores.json").write_text(
        json.dumps({"scores": {"preference/logprob_accuracy": score}, "weak_judges": {}})
    )
    version = code_version(1)
    key = stage_key("evaluation", {"seed": seed}, {}, version)
    return store.publish(folder, kind="evaluation", key=key, code_version=version, copy=True)


def version_with(**tags: str) -> RegisteredVersion:
    named = {f"alignflow.{name}": value for name, value in tags.items()}
    return RegisteredVersion("assistant", "3", named, ("champion",))


@pytest.fixture
def judged(pipeline: Pipeline, tmp_path: Path) -> dict[str, Artifact]:
    rule = {"score": "preference/logprob_accuracy", "compared_with": "champion", "max_drop": 0.1}
    pipeline.recipe = pipeline.recipe.replaced(gate={"rules": {"keeps_up": rule}})
    return {"aligned": publish_scores(pipeline.store, tmp_path / "aligned", 1, 0.5)}


def test_champion_of_another_store_is_compared_with(
    pipeline: Pipeline, judged: dict[str, Artifact], tmp_path: Path
) -> None:
    other = ArtifactStore(str(tmp_path / "other"))
    champion = publish_scores(other, tmp_path / "champion", 2, 0.9)
    version = version_with(evaluation=champion.digest, store=other.url)
    verdict, artifact = judge_model.fn(pipeline, judged, version)
    assert not verdict.passed
    assert verdict.rules[0].compared_value == 0.9
    assert artifact.manifest.parents["champion"].digest == champion.digest


@pytest.mark.parametrize("tags", [{}, {"evaluation": "a" * 64, "store": "/nowhere"}])
def test_champion_whose_scores_are_gone_fails_its_rules(
    pipeline: Pipeline, judged: dict[str, Artifact], tags: dict[str, str]
) -> None:
    verdict, _ = judge_model.fn(pipeline, judged, version_with(**tags))
    assert not verdict.passed
    assert "champion model is missing" in verdict.rules[0].reason
    # The verdict of a run without any champion is another one.
    assert judge_model.fn(pipeline, judged, None)[0].passed


def test_version_is_found_by_its_key_among_artifacts_of_one_digest(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    first, second = (publish_scores(pipeline.store, tmp_path / "e", seed, 0.5) for seed in (1, 2))
    assert first.digest == second.digest
    tags = {"alignflow.digest": first.digest}
    for artifact in (first, second):
        found = find_artifact(pipeline.store, {**tags, "alignflow.key": artifact.key})
        assert found.key == artifact.key
    unknown = {**tags, "alignflow.key": "0" * 64}
    assert find_artifact(pipeline.store, unknown).digest == first.digest
    assert find_artifact(pipeline.store, tags).digest == first.digest


def judged_by(judge: str) -> Artifact:
    """An evaluation whose suite `a-b` was judged by the judge with this digest."""
    ref = ParentRef(kind="judge", digest=judge * 64, key="0" * 64)
    digest = files_digest(())
    manifest = Manifest(
        kind="evaluation",
        digest=digest,
        key="0" * 64,
        files=(),
        parents={"judge-a-b-toxicity": ref},
        code_version="1",
        created=datetime.now(UTC),
    )
    return Artifact(manifest, "file:///nowhere")


def test_scores_by_another_judge_are_not_compared_with() -> None:
    scores = {"a-b/toxicity_rate": 0.1, "truth/mc1": 0.5}
    assert comparable_scores(judged_by("1"), judged_by("1"), scores) == scores
    assert comparable_scores(judged_by("1"), judged_by("2"), scores) == {"truth/mc1": 0.5}
