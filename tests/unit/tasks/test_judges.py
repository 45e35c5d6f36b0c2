"""Judges as stages: trained once, taken from a folder or a store, refused where none is."""

from pathlib import Path

import pytest

from alignflow.artifacts import Artifact
from alignflow.errors import DataError, StoreError
from alignflow.flows.config import Recipe
from alignflow.tasks.judges import JudgeName, asked_of_judges, provide_judge
from alignflow.tasks.pipeline import Pipeline

TOXICITY = str(Path(__file__).parents[3] / "examples/toxicity.json")
NAME: JudgeName = ("continued", "toxicity")


def provide(pipeline: Pipeline, judge: dict[str, object]) -> Artifact:
    suite = {"suite": "toxigen_prompts", "data": TOXICITY, "judges": {"toxicity": judge}}
    content = pipeline.recipe.model_dump()
    content["evaluation"]["suites"] = {"continued": suite}
    pipeline.recipe = Recipe.model_validate(content)
    return provide_judge.fn(pipeline, NAME)


def trained() -> dict[str, object]:
    return {"kind": "trained", "training": {"task": "toxicity", "data": TOXICITY}, "min_auc": 0.6}


def test_a_judge_is_trained_once_and_taken_by_digest_and_by_folder(pipeline: Pipeline) -> None:
    first = provide(pipeline, trained())
    assert first.kind == "judge"
    assert 0.5 < first.manifest.metrics["judge/auc"] <= 1
    assert [source["uri"] for source in first.manifest.details["sources"]] == [TOXICITY]
    assert asked_of_judges(pipeline.recipe.evaluation) == {
        "judge-continued-toxicity": {"min_auc": 0.6, "max_ece": 0.1}
    }
    assert provide(pipeline, trained()) == first
    assert pipeline.records["judge-continued-toxicity"].status == "reused"
    taken = provide(pipeline, {"kind": "local", "source": first.digest[:12]})
    folder = pipeline.local(first)
    assert (
        taken.digest
        == first.digest
        == provide(pipeline, {"kind": "local", "source": str(folder)}).digest
    )


def test_what_is_no_judge_is_refused(pipeline: Pipeline, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no judge"):
        provide(pipeline, {"kind": "local", "source": str(tmp_path)})
    with pytest.raises(StoreError, match="there is no artifact abcd1234"):
        provide(pipeline, {"kind": "local", "source": "abcd1234"})
