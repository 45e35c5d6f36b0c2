"""`alignflow compare`: two evaluations beside one another, by digest or by registered version."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from alignflow.artifacts import Artifact, code_version, stage_key
from alignflow.cli.app import app
from alignflow.evaluation.measures import Items, Measure
from alignflow.evaluation.results import Results, write_jsonl
from alignflow.evaluation.suites.base import SuiteResult
from alignflow.tasks.pipeline import Pipeline

PROMPTS = Items.of(range(40))


def publish(pipeline: Pipeline, folder: Path, right: list[float], rewards: list[float]) -> Artifact:
    """An evaluation on 40 questions and 40 prompts."""
    folder.mkdir()
    results = Results(folder)
    truth = Measure.mean(PROMPTS, right, is_share=True)
    results.add("truth", SuiteResult({"mc1": truth}, []), num_items=40)
    answers = {
        "mean_reward": Measure.mean(PROMPTS, rewards),
        "mean_tokens": Measure.mean(PROMPTS, [20.0] * 40),
    }
    results.add("samples", SuiteResult(answers, []), num_items=40)
    results.write({})
    write_jsonl(folder / "samples.jsonl", [])
    version = code_version(1)
    key = stage_key("evaluation", {"name": folder.name}, {}, version)
    return pipeline.store.publish(folder, kind="evaluation", key=key, code_version=version)


@pytest.fixture
def evaluations(pipeline: Pipeline, tmp_path: Path) -> tuple[Artifact, Artifact]:
    first = publish(pipeline, tmp_path / "a", [0.0] * 30 + [1.0] * 10, [0.0] * 40)
    second = publish(pipeline, tmp_path / "b", [1.0] * 40, [1.0] * 30 + [-1.0] * 10)
    return first, second


def compare(pipeline: Pipeline, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["compare", *arguments, "--workspace", str(pipeline.workspace)])


def test_two_evaluations_are_compared_item_by_item(
    pipeline: Pipeline, evaluations: tuple[Artifact, Artifact]
) -> None:
    first, second = (evaluation.digest for evaluation in evaluations)
    done = compare(pipeline, first, second, "--format", "json")
    assert done.exit_code == 0
    shown = json.loads(done.stdout)
    (truth,) = [row for row in shown["scores"] if row["name"] == "truth/mc1"]
    assert truth["values"] == {"base": 0.25, "aligned": 1.0}
    assert truth["differences"]["base"]["value"] == 0.75
    # 0.75 ± 1.96 * sqrt(0.75 * 0.25 / 40).
    assert truth["differences"]["base"]["interval"] == pytest.approx([0.616, 0.884], abs=0.04)
    (wins,) = shown["win_rates"]
    assert (wins["against"], wins["rate"]) == ("base", 0.75)
    page = pipeline.workspace / "comparisons" / f"{first[:12]}-{second[:12]}.html"
    text = page.read_text(encoding="utf-8")
    assert "by 2 scores B is better, by 0 worse" in " ".join(text.split())
    assert "Whose answer wins" in text


def test_registered_version_stands_for_its_evaluation(
    pipeline: Pipeline,
    evaluations: tuple[Artifact, Artifact],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    first, second = evaluations
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_text("of a model that only compare asks for")
    key = stage_key("dpo", {}, {}, code_version(1))
    model = pipeline.store.publish(
        tmp_path / "model", kind="dpo", key=key, code_version=code_version(1)
    )
    run = pipeline.tracker.start_stage("register", {})
    version = pipeline.tracker.register(
        "compared",
        pipeline.tracker.log_model(run, "compared", model),
        run=run,
        tags={
            "alignflow.digest": model.digest,
            "alignflow.store": pipeline.store.url,
            "alignflow.evaluation": second.digest,
        },
    )
    monkeypatch.setenv("MLFLOW_TRACKING_URI", pipeline.tracker.uri)
    done = compare(pipeline, first.digest, version.uri)
    assert done.exit_code == 0
    said = " ".join(done.stdout.split())
    assert f"B is {version.uri}" in said
    assert "B's answers win 75.0 % of 40 prompts" in said
    assert "+75.0 pts better" in said


def test_artifact_of_another_kind_is_refused(pipeline: Pipeline, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "file").touch()
    key = stage_key("dataset", {}, {}, code_version(1))
    other = pipeline.store.publish(
        tmp_path / "set", kind="dataset", key=key, code_version=code_version(1)
    )
    done = compare(pipeline, other.digest, other.digest)
    assert done.exit_code == 2
    assert "is an artifact of kind dataset; give an evaluation's" in done.stderr
