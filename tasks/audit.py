"""The token audit as a task: what the limits of a recipe would cost, before anything is trained."""

from collections.abc import Mapping, Sequence

from prefect import task
from prefect.artifacts import create_table_artifact

from alignflow.artifacts import Artifact
from alignflow.errors import DataError
from alignflow.reporting.model import LeakRow, TokenRow
from alignflow.tasks.jobs import run_as_job
from alignflow.tasks.logs import run_logger
from alignflow.tasks.pipeline import Pipeline, Stage
from alignflow.tasks.retries import STAGE_TASK
from alignflow.training.token_audit import (
    AUDIT_FILE,
    AuditedStage,
    TokenAudit,
    TokenAuditJob,
    judge_audit,
    row_fields,
)

AUDIT_STAGE = "token_audit"
"""Name of the stage that looks at the sets of the recipe, and kind of what it makes."""
MADE_ROWS_AUDIT_STAGE = "annotated_audit"
"""Name of the stage that looks at the rows that the run makes itself."""

# Raised by a commit that changes what the stage makes: `alignflow.artifacts.code_version`.
_REVISION = 1


@task(task_run_name="{name}", **STAGE_TASK)
def audit_tokens(
    pipeline: Pipeline,
    name: str,
    stages: Sequence[AuditedStage],
    model: Artifact,
    datasets: Mapping[str, Artifact],
) -> Artifact:
    """Count what each stage would make of its rows, and refuse what the recipe doesn't allow.

    The bounds are no part of the stage's key: another bound judges the same counts anew.

    Args:
        pipeline: The run.
        name: Name of this stage.
        stages: Training stages with their sets.
        model: Whose tokenizer and chat template make the rows.
        datasets: The sets by name.

    Raises:
        DataError: A critical bound of `token_audit` isn't kept.
        JobError: The job failed.
    """
    config = pipeline.recipe.token_audit
    stage = Stage(
        name=name,
        kind=AUDIT_STAGE,
        config={
            "max_records": config.max_records,
            "stages": [row_fields(audited) for audited in stages],
        },
        revision=_REVISION,
        parents={"model": model, **datasets},
    )

    def job() -> TokenAuditJob:
        return TokenAuditJob(
            model=pipeline.local(model),
            datasets={name: pipeline.local(dataset) for name, dataset in datasets.items()},
            stages=list(stages),
            max_records=config.max_records,
        )

    artifact = run_as_job(pipeline, stage, "alignflow.training.audit", job, on_cpu=True)
    audit = _read(pipeline, artifact)
    _show_in_prefect(name, audit)
    broken = judge_audit(audit, config, pipeline.recipe.data)
    for bound in broken:
        run_logger().warning("%s.", bound.sentence)
    if broken and broken[0].severity == "critical":
        raise DataError(
            f"{broken[0].sentence}: no training on them is started; mend the rows, give the stage "
            "more room, or change the bound.",
            reason="token_audit",
        )
    return artifact


def token_rows(pipeline: Pipeline) -> list[TokenRow]:
    """Return what the report shows of the audit."""
    rows = []
    for audit in _audits(pipeline):
        broken = judge_audit(audit, pipeline.recipe.token_audit, pipeline.recipe.data)
        rows += [
            TokenRow(
                **tokens.model_dump(),
                notes=[bound.sentence for bound in broken if bound.place == tokens.stage],
            )
            for tokens in audit.stages
        ]
    return rows


def leak_rows(pipeline: Pipeline) -> list[LeakRow]:
    """Return what the report shows of held-out prompts that are trained on."""
    return [LeakRow(**leak.model_dump()) for audit in _audits(pipeline) for leak in audit.leaks]


def _audits(pipeline: Pipeline) -> list[TokenAudit]:
    """Return what the audits of this run found: of the recipe's sets, then of rows it made."""
    return [
        _read(pipeline, pipeline.records[stage].artifact)
        for stage in (AUDIT_STAGE, MADE_ROWS_AUDIT_STAGE)
        if stage in pipeline.records
    ]


def _read(pipeline: Pipeline, artifact: Artifact) -> TokenAudit:
    content = (pipeline.local(artifact) / AUDIT_FILE).read_bytes()
    return TokenAudit.model_validate_json(content)


def _show_in_prefect(name: str, audit: TokenAudit) -> None:
    create_table_artifact(
        key=name.replace("_", "-"),
        description="Tokens of the training rows, and what the limits would cut",
        table=[
            {
                "stage": tokens.stage,
                "limit": tokens.limit,
                "records": f"{tokens.num_audited} of {tokens.num_records}",
                **tokens.percentiles,
                "over the limit": tokens.num_over_limit,
                "tokens cut": tokens.num_tokens_over,
                "answers cut": tokens.num_response_cut,
                "without loss": tokens.num_without_loss,
                "without end": tokens.num_missing_end,
                "left out": sum(tokens.refused.values()),
            }
            for tokens in audit.stages
        ],
    )
