"""The gate's look at the champion, whose run may have used another store."""

import json
from pathlib import Path

import pytest

from alignflow.artifacts import Artifact, ArtifactStore, code_version, stage_key
from alignflow.artifacts.manifest import ParentRef
from alignflow.evaluation.config import GateConfig
from alignflow.evaluation.measures import Items, Measure, write_measures
from alignflow.lineage import find_artifact
from alignflow.tasks.evaluate import (
    JudgedAnswers,
    comparable_measures,
    judge_evaluations,
    judge_model,
)
from alignflow.tasks.pipeline import Pipeline
from alignflow.tasks.tracking import RegisteredVersion


def publish_scores(store: ArtifactStore, folder: Path, seed: int, score: float) -> Artifact:
    folder.mkdir(parents=True, exist_ok=True)
    measure = Measure.mean(Items.of(["pair"]), [score])
    write_measures(folder / "measures.json", {"preference/logprob_accuracy": measure})
    (folder / "scores.json").write_text(json.dumps({"limited": []}))
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


def test_champion_judged_by_an_older_version_fails_its_rules(
    pipeline: Pipeline, judged: dict[str, Artifact], tmp_path: Path
) -> None:
    publish_scores(ArtifactStore(str(tmp_path / "other")), tmp_path / "champion", 2, 0.9)
    (tmp_path / "champion" / "measures.json").unlink()
    version = code_version(1)
    old = pipeline.store.publish(
        tmp_path / "champion", kind="evaluation", key="0" * 64, code_version=version, copy=True
    )
    verdict, _ = judge_model.fn(pipeline, judged, version_with(evaluation=old.digest))
    assert not verdict.passed
    assert "champion model is missing" in verdict.rules[0].reason


def test_evaluation_with_a_limit_is_refused(pipeline: Pipeline, tmp_path: Path) -> None:
    rule = {"score": "preference/logprob_accuracy", "at_least": 0.1}
    pipeline.recipe = pipeline.recipe.replaced(gate={"rules": {"prefers": rule}})
    whole = publish_scores(pipeline.store, tmp_path / "whole", 1, 0.5)
    assert judge_model.fn(pipeline, {"aligned": whole}, None)[0].passed
    folder = tmp_path / "whole"
    (folder / "scores.json").write_text(json.dumps({"limited": ["suites.truth.limit"]}))
    part = pipeline.store.publish(
        folder, kind="evaluation", key="1" * 64, code_version=code_version(1), copy=True
    )
    verdict, _ = judge_model.fn(pipeline, {"aligned": part}, None)
    assert not verdict.passed
    assert "take the limit out of the recipe" in verdict.rules[-1].reason


def evaluation_by(pipeline: Pipeline, folder: Path, judges: dict[str, ParentRef]) -> Artifact:
    version = code_version(1)
    return pipeline.store.publish(
        folder,
        kind="evaluation",
        key=stage_key("evaluation", {}, judges, version),
        code_version=version,
        parents=judges,
        copy=True,
    )


def parent(kind: str, letter: str) -> ParentRef:
    return ParentRef(kind=kind, key=letter * 64, digest=letter * 64)


def test_rewards_of_another_reward_model_are_not_compared_with(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    prompts = Items.of(range(3))
    scores = {
        name: Measure.mean(prompts, [1.0, 2.0, 3.0])
        for name in ("samples/mean_reward", "samples/mean_tokens", "samples/quality", "kl/nats")
    }
    write_measures(tmp_path / "measures.json", scores)

    def judged_by(reward_model: str) -> Artifact:
        judges = {
            "reward_model": parent("reward_model", reward_model),
            "attribute_model": parent("attribute_model", "c"),
        }
        return evaluation_by(pipeline, tmp_path, judges)

    of_one, of_another = judged_by("a"), judged_by("b")
    assert set(comparable_measures(tmp_path, of_one, beside=of_one)) == set(scores)
    assert set(comparable_measures(tmp_path, of_one, beside=of_another)) == set(scores) - {
        "samples/mean_reward"
    }


def test_scores_by_another_judge_are_not_compared_with(pipeline: Pipeline, tmp_path: Path) -> None:
    scores = {
        name: Measure.mean(Items.of(range(3)), [0.0, 1.0, 0.0])
        for name in ("a-b/toxicity_rate", "truth/mc1")
    }
    write_measures(tmp_path / "measures.json", scores)
    of_one, of_another = (
        evaluation_by(pipeline, tmp_path, {"judge-a-b-toxicity": parent("judge", letter)})
        for letter in "ab"
    )
    assert set(comparable_measures(tmp_path, of_one, beside=of_one)) == set(scores)
    assert set(comparable_measures(tmp_path, of_one, beside=of_another)) == {"truth/mc1"}


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


SAID = {"weak_judges": {}, "num_left_out": {"held_out": 2, "sft": 1}}


def test_duel_with_another_champion_than_today_s_does_not_count(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    outcomes = Measure.mean(Items.of(["prompt"]), [1.0], is_share=True)
    lengths = {"samples/mean_tokens": Measure.mean(Items.of(["prompt"]), [9.0])}
    (tmp_path / "scores.json").write_text(json.dumps({"limited": [], **SAID}))

    def published(measures: dict[str, Measure], **parents: Artifact) -> Artifact:
        write_measures(tmp_path / "measures.json", measures)
        return evaluation_by(pipeline, tmp_path, {role: of.ref for role, of in parents.items()})

    champion = published(lengths)
    rates = {f"judged_win_rate/{name}": outcomes for name in ("sft", "champion")}
    compared = published(rates, champion=champion)
    folder = pipeline.local(compared)
    kept = JudgedAnswers.read(compared, folder, version_with(evaluation=champion.digest))
    assert kept.measures.keys() == rates.keys()
    assert kept.num_left_out == 3
    for other in (None, version_with(evaluation="a" * 64)):
        answers = JudgedAnswers.read(compared, folder, other)
        assert answers.measures.keys() == {"judged_win_rate/sft"}
    # A rule on what is no more fails, and passes where there is no champion at all.
    config = GateConfig.model_validate(
        {"rules": {"wins": {"score": "judged_win_rate/champion", "at_least": 0.6}}}
    )
    aligned = {"aligned": pipeline.local(champion)}
    assert judge_evaluations(config, aligned, lengths, kept).passed
    assert not judge_evaluations(config, aligned, lengths, answers).passed
    assert judge_evaluations(config, aligned, None, answers).passed
    weak = JudgedAnswers(kept.measures, {"judged_win_rate": "The judge is weak."})
    verdict = judge_evaluations(config, aligned, lengths, weak)
    assert [rule.reason for rule in verdict.rules] == ["The judge is weak."]
