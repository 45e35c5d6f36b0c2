"""The end of a run: its report, its pages in Prefect and MLflow, and what the terminal says."""

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Literal

import psutil
from prefect import task
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.settings import PREFECT_API_URL, PREFECT_UI_URL

from alignflow import __version__
from alignflow.artifacts import Artifact
from alignflow.config import Config, as_yaml
from alignflow.evaluation.gate import Verdict
from alignflow.evaluation.judges.card import JudgeCard
from alignflow.jobs.slots import gpu_slots
from alignflow.reporting.model import (
    ROLE_LABELS,
    ROLES,
    AnswerJudgeSummary,
    JudgeSummary,
    Lineage,
    LineageEdge,
    LineageNode,
    Links,
    Message,
    ModelRole,
    RefusedRecord,
    ReportData,
    RuleOutcome,
    Sample,
    ScoreRow,
    StageRecord,
    TrainingCurve,
    TrainingRows,
    VerdictSummary,
)
from alignflow.reporting.page import render_page, verdict_sentence
from alignflow.reporting.scores import format_difference, format_interval, format_score
from alignflow.reporting.text import visible
from alignflow.tasks.audit import leak_rows, token_rows
from alignflow.tasks.data import summarise_dataset
from alignflow.tasks.evaluate import JudgedAnswers
from alignflow.tasks.evaluated import Evaluated, evaluated_models
from alignflow.tasks.items import distributions_of, samples_of, worst_items
from alignflow.tasks.pipeline import Pipeline
from alignflow.tasks.prefect_server import is_temporary
from alignflow.tasks.retries import STAGE_TASK
from alignflow.tasks.scores import (
    answer_judge_summary,
    not_as_they_came,
    score_rows,
    win_rate_rows,
)
from alignflow.tasks.tracking import RegisteredVersion
from alignflow.urls import without_credentials

_NAMED_ROWS = 50
"""Refused rows of a training stage that the report names."""


@dataclass(frozen=True)
class PipelineArtifacts:
    """The artifacts that the report shows."""

    datasets: Mapping[str, Artifact]
    """The training sets, by name in the recipe."""
    aligned: Artifact
    evaluations: Mapping[ModelRole, Artifact]
    verdict: Artifact
    compared: Artifact | None = None
    """What the judge of answers said, where the recipe has one."""


class Outcome(Config):
    """What a run came to."""

    run_id: str
    passed: bool
    sentence: str
    """The verdict in one sentence."""
    reasons: list[str]
    """One of every rule, those of failed rules first."""
    scores: list[ScoreRow]
    model_version: str | None
    """`models:/NAME/VERSION`; None if refused."""
    decision: Literal["promoted", "awaiting approval"] | None = None
    """What followed for the champion; None where nothing did."""
    export: str
    """Hugging Face folder or URL of the aligned model."""
    report: Path
    stages: dict[str, str]
    """`computed` or `reused`, by stage."""
    flow_run_id: str
    prefect_url: str | None
    """URL of the flow run's page; None with a temporary server, which ends with the run."""
    mlflow_uri: str
    mlflow_url: str | None
    """URL of the run's page; None with a database file, which needs a server first."""


@task(task_run_name="report", **STAGE_TASK)
def write_report(
    pipeline: Pipeline,
    artifacts: PipelineArtifacts,
    verdict: Verdict,
    version: RegisteredVersion | None,
    champion: RegisteredVersion | None = None,
) -> Outcome:
    """Write the report page, put it into MLflow, and tell the story on Prefect's run page."""
    pipeline.display.started("report")
    folder = run_folder(pipeline.workspace, pipeline.run_id)
    folder.mkdir(parents=True, exist_ok=True)
    data = collect(pipeline, artifacts, verdict, version, champion)
    page = folder / "report.html"
    (folder / "report.json").write_text(data.model_dump_json(indent=1), encoding="utf-8")
    page.write_text(render_page(data), encoding="utf-8")
    _publish_in_mlflow(pipeline, page, data)
    outcome = Outcome(
        run_id=pipeline.run_id,
        passed=verdict.passed,
        sentence=verdict_sentence(data),
        reasons=[rule.reason for rule in sorted(verdict.rules, key=lambda rule: rule.passed)],
        scores=data.scores,
        model_version=version.uri if version else None,
        export=artifacts.aligned.uri,
        report=page,
        stages={name: record.status for name, record in pipeline.records.items()},
        flow_run_id=pipeline.flow_run_id,
        prefect_url=data.links.prefect_run,
        mlflow_uri=without_credentials(pipeline.tracker.uri),
        mlflow_url=data.links.mlflow_run,
    )
    _publish_in_prefect(data, outcome)
    pipeline.display.finished("report", "done", str(page))
    return outcome


def run_folder(workspace: Path, run_id: str) -> Path:
    """Folder of a run's report."""
    return workspace / "runs" / run_id


def collect(
    pipeline: Pipeline,
    artifacts: PipelineArtifacts,
    verdict: Verdict,
    version: RegisteredVersion | None,
    champion: RegisteredVersion | None,
) -> ReportData:
    """Gather all that the page shows."""
    evaluated = evaluated_models(pipeline, artifacts.evaluations, champion)
    return ReportData(
        pipeline=pipeline.recipe.name,
        run_id=pipeline.run_id,
        finished_at=datetime.now(UTC),
        seconds=pipeline.seconds,
        recipe=without_credentials(as_yaml(pipeline.recipe)),
        verdict=VerdictSummary(
            passed=verdict.passed,
            rules=[
                RuleOutcome(name=rule.name, passed=rule.passed, reason=rule.reason)
                for rule in verdict.rules
            ],
        ),
        scores=score_rows(evaluated),
        win_rates=win_rate_rows(evaluated, tie_margin=pipeline.recipe.gate.tie_margin),
        answer_judge=_answer_judge(pipeline, artifacts.compared, evaluated, champion),
        kl_nats_per_token=evaluated["aligned"].scores["scores"].get("kl/parent_nats_per_token"),
        distributions=distributions_of(evaluated),
        worst_items=worst_items(evaluated),
        **not_as_they_came(evaluated["aligned"]),
        judges=_judges(
            pipeline.local(artifacts.evaluations["aligned"]),
            evaluated["aligned"].scores["weak_judges"],
        ),
        curves=_curves(pipeline),
        token_rows=token_rows(pipeline),
        leak_rows=leak_rows(pipeline),
        training_rows=training_rows(pipeline),
        datasets=[
            summarise_dataset(pipeline, name, artifact)
            for name, artifact in artifacts.datasets.items()
        ],
        lineage=_lineage(pipeline, artifacts, version),
        stages=_stage_records(pipeline),
        samples=samples_of(evaluated),
        links=Links(
            prefect_run=prefect_url(pipeline.flow_run_id),
            mlflow_run=pipeline.tracker.run_url,
            model_version=(
                f"{version.name} version {version.version} ({', '.join(version.aliases)})"
                if version
                else None
            ),
            model_version_url=pipeline.tracker.version_url(version) if version else None,
            export=artifacts.aligned.uri if version else None,
            store=pipeline.store.url,
        ),
        versions=versions(),
        machine=machine(),
        price_per_process_hour=pipeline.recipe.cluster.price_per_process_hour,
        currency=pipeline.recipe.cluster.currency,
    )


def _answer_judge(
    pipeline: Pipeline,
    compared: Artifact | None,
    models: Mapping[ModelRole, Evaluated],
    champion: RegisteredVersion | None,
) -> AnswerJudgeSummary | None:
    judge = pipeline.recipe.evaluation.answer_judge
    if compared is None or judge is None:
        return None
    answers = JudgedAnswers.read(compared, pipeline.local(compared), champion)
    return answer_judge_summary(without_credentials(judge.model.source), models, answers)


def _judges(evaluation: Path, objections: Mapping[str, str]) -> list[JudgeSummary]:
    """Return the judges whose cards lie beside the scores, `judges/SUITE/TASK/card.json`.

    Args:
        evaluation: Folder of the evaluation.
        objections: Why the judges of a suite aren't good enough, by suite.
    """
    judges = []
    for path in sorted(evaluation.glob("judges/*/*/card.json")):
        suite = path.parts[-3]
        card = JudgeCard.load(path.parent)
        judges.append(JudgeSummary(suite=suite, card=card, objection=objections.get(suite, "")))
    return judges


def _curves(pipeline: Pipeline) -> list[TrainingCurve]:
    curves = []
    for record in pipeline.records.values():
        kind = record.artifact.kind
        lines = record.artifact.manifest.details.get("curves", [])
        if any(f"{kind}/loss" in line for line in lines):
            curves.append(TrainingCurve.from_metrics(kind, lines))
    return curves


def training_rows(pipeline: Pipeline) -> list[TrainingRows]:
    """Return what each training stage cut and refused; other stages count no rows."""
    found = []
    for record in pipeline.records.values():
        details = record.artifact.manifest.details
        if "num_rows" in details:
            refused = details["refused_rows"]
            found.append(
                TrainingRows(
                    stage=record.artifact.kind,
                    num_rows=details["num_rows"],
                    num_truncated=details["num_truncated"],
                    num_refused=details.get("num_refused", len(refused)),
                    refused=[RefusedRecord.model_validate(row) for row in refused[:_NAMED_ROWS]],
                )
            )
    return found


def _stage_records(pipeline: Pipeline) -> list[StageRecord]:
    records = []
    for record in pipeline.records.values():
        details = record.artifact.manifest.details
        records.append(
            StageRecord(
                name=record.name,
                status=record.status,
                seconds=record.seconds,
                num_processes=details.get("num_processes", 1),
                tokens=details.get("tokens_processed"),
                tokens_per_s=details.get("tokens_per_s"),
                peak_memory_bytes=details.get("peak_memory_bytes"),
            )
        )
    return records


def _lineage(
    pipeline: Pipeline, artifacts: PipelineArtifacts, version: RegisteredVersion | None
) -> Lineage:
    """Draw the run's artifacts and their edges; the registry hangs on model and verdict."""
    # By key: stages may make the same bytes, such as a model that training didn't move.
    names = {record.artifact.key: name for name, record in pipeline.records.items()}
    nodes = [
        LineageNode(
            id=name,
            kind=record.artifact.kind,
            label=name,
            digest=record.artifact.digest,
            detail=_detail(record.artifact),
        )
        for name, record in pipeline.records.items()
    ]
    edges = [
        LineageEdge(source=names[parent.key], target=name, role=role)
        for name, record in pipeline.records.items()
        for role, parent in record.artifact.manifest.parents.items()
        if parent.key in names
    ]
    if version is not None:
        detail = f"version {version.version}"
        nodes.append(LineageNode(id="registry", kind="registry", label=version.name, detail=detail))
        edges += [
            LineageEdge(source=names[artifact.key], target="registry")
            for artifact in (artifacts.aligned, artifacts.verdict)
        ]
    return Lineage(nodes=nodes, edges=edges)


def _detail(artifact: Artifact) -> str:
    details = artifact.manifest.details
    if "num_train" in details:
        return f"{details['num_train']} rows"
    if "num_steps" in details:
        return f"{details['num_steps']} steps"
    return ""


def versions() -> dict[str, str]:
    """Return the version of each program that takes part."""
    packages = ("torch", "megatron-core", "transformers", "prefect", "mlflow")
    return {
        "alignflow": __version__,
        "python": platform.python_version(),
        **{package: package_version(package) for package in packages},
    }


def machine() -> str:
    """Return this machine in words."""
    gigabytes = psutil.virtual_memory().total / 2**30
    gpus = len(gpu_slots())
    return (
        f"{os.cpu_count()} CPU cores, {gigabytes:.0f} GiB of memory, "
        f"{f'{gpus} GPUs' if gpus else 'no GPU'}"
    )


def prefect_url(flow_run_id: str) -> str | None:
    """Return the flow run's page; a temporary server's address is gone when the run ends."""
    api_url = PREFECT_API_URL.value()
    if not api_url or is_temporary(api_url):
        return None
    ui = PREFECT_UI_URL.value() or api_url.removesuffix("/api")
    return f"{without_credentials(ui)}/runs/flow-run/{flow_run_id}"


def _publish_in_mlflow(pipeline: Pipeline, page: Path, data: ReportData) -> None:
    run = pipeline.tracker.run
    run.log_file(page)
    if data.samples:
        run.log_table(sample_table(data.samples), "samples.json")
    tags = {"alignflow.verdict": "accepted" if data.verdict.passed else "refused"}
    final = {row.name: row.values["aligned"] for row in data.scores if "aligned" in row.values}
    final |= {f"win_rate/{row.against}": row.rate for row in data.win_rates}
    judged = data.answer_judge.win_rates if data.answer_judge else []
    final |= {f"judged_win_rate/{row.against}": row.rate for row in judged}
    run.log(final, time_ms=int(data.finished_at.timestamp() * 1000), tags=tags)


def sample_table(samples: Sequence[Sample]) -> dict[str, list[str | float | None]]:
    """Return the columns of a table with a row for each answer, for people to review."""
    rows = [
        (message_text(sample.prompt), ROLE_LABELS[role], visible(answer.text), answer.reward)
        for sample in samples
        for role, answer in sample.answers.items()
    ]
    names = ("prompt", "model", "answer", "reward")
    return dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))


def message_text(messages: Sequence[Message]) -> str:
    """Return a conversation as one text, a turn a paragraph."""
    return visible("\n\n".join(f"{each.role}: {each.content}" for each in messages))


def _publish_in_prefect(data: ReportData, outcome: Outcome) -> None:
    """Put verdict, score table and links on the flow run's page."""
    create_markdown_artifact(
        key="verdict",
        description=outcome.sentence,
        markdown="\n".join(
            [f"## {outcome.sentence}", ""]
            + [
                f"- {'passed' if rule.passed else '**failed**'}: {rule.reason}"
                for rule in data.verdict.rules
            ]
        ),
    )
    create_table_artifact(
        key="scores",
        description="Scores of the base, the SFT and the aligned model",
        table=[
            {
                "score": row.label,
                **{role: format_score(row, row.values.get(role)) for role in ROLES},
                "aligned - base": format_difference(row),
                "95 % interval": (
                    format_interval(row, row.differences["base"].interval, signed=True)
                    if "base" in row.differences
                    else ""
                ),
            }
            for row in data.scores
        ],
    )
    create_link_artifact(
        key="report", link=outcome.report.as_uri(), link_text="report", description="Report page"
    )
    if data.links.mlflow_run:
        create_link_artifact(
            key="mlflow-run", link=data.links.mlflow_run, link_text="run in MLflow"
        )
