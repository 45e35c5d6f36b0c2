"""Registration of an accepted model, once and again."""

import json
from pathlib import Path

from alignflow.artifacts import Artifact, code_version, stage_key
from alignflow.evaluation.gate import Verdict
from alignflow.tasks.pipeline import Pipeline
from alignflow.tasks.register import register_model
from alignflow.tasks.tracking import RegisteredVersion


def publish(pipeline: Pipeline, folder: Path, kind: str, seed: int = 0) -> Artifact:
    folder.mkdir(exist_ok=True)
    (folder / "scores.json").write_text(json.dumps({"scores": {"preference/x": 0.5}, "of": kind}))
    version = code_version(1)
    key = stage_key(kind, {"seed": seed}, {}, version)
    return pipeline.store.publish(folder, kind=kind, key=key, code_version=version, copy=True)


def register(pipeline: Pipeline, folder: Path, name: str, parent_seed: int) -> RegisteredVersion:
    return register_model.fn(
        pipeline,
        publish(pipeline, folder / name, name),
        parent=publish(pipeline, folder / f"parent-{parent_seed}", f"sft{parent_seed}"),
        datasets={},
        evaluation=publish(pipeline, folder / "evaluation", "evaluation"),
        verdict=Verdict(passed=True, rules=[]),
        verdict_artifact=publish(pipeline, folder / f"v{parent_seed}", f"verdict{parent_seed}"),
    )


def test_version_keeps_its_origin_and_the_newest_model_is_the_candidate(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    first = register(pipeline, tmp_path, "dpo", 1)
    assert first.aliases == ("candidate",)
    newer = register(pipeline, tmp_path, "dpo-again", 1)
    assert (newer.version, newer.aliases) == ("2", ("candidate",))

    again = register(pipeline, tmp_path, "dpo", 2)
    assert (again.version, again.aliases) == ("1", ())
    found = pipeline.tracker.registry.get("assistant", "1")
    assert found is not None
    assert found.tags["alignflow.parent"] == first.tags["alignflow.parent"]
    assert found.tags["alignflow.verdict_digest"] != first.tags["alignflow.verdict_digest"]
