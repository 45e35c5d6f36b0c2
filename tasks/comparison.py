"""The end of a comparison: its page, and what Prefect, MLflow and the terminal say of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from prefect import task
from prefect.artifacts import create_link_artifact, create_markdown_artifact

from alignflow.artifacts import Artifact
from alignflow.config import Config, as_yaml
from alignflow.reporting.comparison import Comparison, MethodTrials, TrialResult, as_markdown
from alignflow.reporting.page import render_comparison
from alignflow.tasks.evaluate import read_scores
from alignflow.tasks.pipeline import Pipeline
from alignflow.tasks.report import machine, prefect_url, run_folder, versions
from alignflow.tasks.retries import STAGE_TASK
from alignflow.urls import without_credentials


@dataclass(frozen=True)
class Trial:
    """One model that a method made with one seed."""

    method: str
    seed: int
    stages: tuple[str, ...]
    """What the method needed beyond the SFT model."""


class ComparisonOutcome(Config):
    """What a comparison came to."""

    run_id: str
    comparison: Comparison
    report: Path
    flow_run_id: str
    prefect_url: str | None
    """URL of the flow run's page; None with a temporary server, which ends with the run."""
    mlflow_uri: str
    mlflow_url: str | None
    """URL of the run's page; None with a database file, which needs a server first."""


@task(task_run_name="comparison", **STAGE_TASK)
def write_comparison(
    pipeline: Pipeline,
    before: Mapping[str, Artifact],
    trials: Sequence[tuple[Trial, Artifact]],
) -> ComparisonOutcome:
    """Write the page of a comparison and put it into MLflow and on Prefect's run page.

    Args:
        pipeline: The run.
        before: Evaluations of the base and the SFT model.
        trials: What was tried, with the evaluation of each model.
    """
    pipeline.display.started("comparison")
    comparison = Comparison(
        pipeline=pipeline.recipe.name,
        run_id=pipeline.run_id,
        finished_at=datetime.now(UTC),
        before={name: _scores(pipeline, evaluation) for name, evaluation in before.items()},
        methods=_by_method([(trial, _result(pipeline, trial, e)) for trial, e in trials]),
        machine=machine(),
        versions=versions(),
        recipe=without_credentials(as_yaml(pipeline.recipe)),
    )
    folder = run_folder(pipeline.workspace, pipeline.run_id)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "comparison.json").write_text(comparison.model_dump_json(indent=1), encoding="utf-8")
    page = folder / "comparison.html"
    page.write_text(render_comparison(comparison), encoding="utf-8")
    pipeline.tracker.run.log_file(page)
    create_markdown_artifact(
        key="comparison", description="Methods side by side", markdown=as_markdown(comparison)
    )
    create_link_artifact(key="report", link=page.as_uri(), link_text="comparison")
    pipeline.display.finished("comparison", "done", str(page))
    return ComparisonOutcome(
        run_id=pipeline.run_id,
        comparison=comparison,
        report=page,
        flow_run_id=pipeline.flow_run_id,
        prefect_url=prefect_url(pipeline.flow_run_id),
        mlflow_uri=without_credentials(pipeline.tracker.uri),
        mlflow_url=pipeline.tracker.run_url,
    )


def _scores(pipeline: Pipeline, evaluation: Artifact) -> dict[str, float | None]:
    scores: dict[str, float | None] = read_scores(pipeline.local(evaluation))["scores"]
    return scores


def _result(pipeline: Pipeline, trial: Trial, evaluation: Artifact) -> TrialResult:
    records = [pipeline.records[name] for name in trial.stages]
    details = [record.artifact.manifest.details for record in records]
    return TrialResult(
        seed=trial.seed,
        scores=_scores(pipeline, evaluation),
        seconds=sum(record.seconds for record in records),
        peak_memory_bytes=max(
            (each["peak_memory_bytes"] for each in details if "peak_memory_bytes" in each),
            default=None,
        ),
        num_models=max(each.get("num_models", 1) for each in details),
    )


def _by_method(results: Sequence[tuple[Trial, TrialResult]]) -> list[MethodTrials]:
    methods = dict.fromkeys(trial.method for trial, _ in results)
    return [
        MethodTrials(
            method=method, trials=[result for trial, result in results if trial.method == method]
        )
        for method in methods
    ]
