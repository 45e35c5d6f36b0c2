"""The pipeline: data → SFT → alignment → evaluation → gate → registry → report → promotion."""

from prefect import flow

from alignflow.errors import SafetyGateError
from alignflow.flows.config import Recipe
from alignflow.flows.graph import stage_graph, stages_to_compute
from alignflow.flows.hooks import on_cancellation, run_name
from alignflow.flows.stages import (
    Future,
    align_model,
    compare_answers,
    judge,
    lay_foundation,
    submit,
)
from alignflow.reporting.model import ModelRole
from alignflow.tasks.conclusion import conclude, tell_of_refusal, was_suspended
from alignflow.tasks.evaluate import judge_model
from alignflow.tasks.last_run import note_last_run
from alignflow.tasks.lifecycle import open_pipeline, raise_first_failure
from alignflow.tasks.register import find_champion, register_model
from alignflow.tasks.report import Outcome, PipelineArtifacts, write_report


@flow(name="align", flow_run_name=run_name, on_cancellation=[on_cancellation])
def align(recipe: Recipe, force: list[str] | None = None, start: str | None = None) -> Outcome:
    """Train, judge and register one model; one that the gate refuses is never registered.

    Args:
        recipe: The pipeline, whole.
        force: Stages to compute anew even if the store holds their artifact.
        start: Stage to start from: it and all that follow are computed anew, those before it must
            be in the store.

    Raises:
        SafetyGateError: The gate or a person refused the model; its `outcome` holds report and
            scores.
    """
    graph = stage_graph(recipe)
    if was_suspended():
        # What it was told to compute anew it has computed before it asked for approval.
        force, start = None, None
    forced, must_reuse = stages_to_compute(graph, force or [], start)
    with open_pipeline(
        recipe, stages=list(graph), forced=forced, must_reuse=must_reuse
    ) as pipeline:
        base = lay_foundation(pipeline, recipe)
        aligned = align_model(pipeline, recipe, base, recipe.method)
        judged: dict[ModelRole, tuple[Future, Future | None]] = {
            "base": (base.model, None),
            "sft": (base.sft, base.model),
            "aligned": (aligned, base.sft),
        }
        evaluations = {
            name: judge(pipeline, recipe, base, name, model, parent=parent)
            for name, (model, parent) in judged.items()
        }
        raise_first_failure([*base.stages, aligned, *evaluations.values()])

        champion = find_champion(pipeline)
        compared = compare_answers(pipeline, recipe, base, evaluations, champion)
        verdict, verdict_artifact = submit(
            judge_model, pipeline, evaluations, champion, compared
        ).result()

        version = None
        if verdict.passed:
            version = submit(
                register_model,
                pipeline,
                aligned,
                parent=base.sft,
                datasets=base.datasets,
                evaluation=evaluations["aligned"],
                verdict=verdict,
                verdict_artifact=verdict_artifact,
            ).result()
        artifacts = PipelineArtifacts(
            datasets={name: future.result() for name, future in base.datasets.items()},
            aligned=aligned.result(),
            evaluations={name: future.result() for name, future in evaluations.items()},
            verdict=verdict_artifact,
            compared=compared,
        )
        outcome = submit(write_report, pipeline, artifacts, verdict, version, champion).result()
        note_last_run(pipeline, artifacts.datasets)
    if not verdict.passed:
        tell_of_refusal(recipe, outcome)
        raise SafetyGateError(outcome.sentence, outcome=outcome)
    return conclude(recipe, outcome)
