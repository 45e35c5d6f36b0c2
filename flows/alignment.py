"""The pipeline: data → SFT → reward model and DPO → evaluation → gate → registry → report."""

from datetime import UTC, datetime
from typing import Any, TypeVar

from prefect import flow, runtime
from prefect.client.schemas.objects import FlowRun, State
from prefect.flows import Flow
from prefect.futures import PrefectFuture
from prefect.tasks import Task

from alignflow.errors import SafetyGateError
from alignflow.flows.config import Recipe
from alignflow.flows.graph import stage_graph, stages_to_compute
from alignflow.tasks.data import fetch_benchmark, ingest_dataset
from alignflow.tasks.evaluate import evaluate_model, judge_model
from alignflow.tasks.lifecycle import cancel_jobs, open_pipeline, raise_first_failure
from alignflow.tasks.model import import_model
from alignflow.tasks.register import find_champion, register_model
from alignflow.tasks.report import Outcome, PipelineArtifacts, write_report
from alignflow.tasks.train import train_stage

R = TypeVar("R")


def _run_name() -> str:
    """Name a flow run after its recipe and the time it started."""
    recipe = runtime.flow_run.parameters["recipe"]
    name = recipe["name"] if isinstance(recipe, dict) else recipe.name
    return f"{name}-{datetime.now(UTC):%Y%m%d-%H%M%S}"


def _on_cancellation(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """End the jobs of a cancelled run; Prefect calls this in another process than the flow's."""
    cancel_jobs(Recipe.model_validate(flow_run.parameters["recipe"]), str(flow_run.id))


def _submit(task: Task[..., R], *args: Any, **kwargs: Any) -> PrefectFuture[R]:
    """Submit a task whose arguments may be futures of other tasks."""
    return task.submit(*args, **kwargs, return_state=False)


@flow(name="align", flow_run_name=_run_name, on_cancellation=[_on_cancellation])
def align(recipe: Recipe, force: list[str] | None = None, start: str | None = None) -> Outcome:
    """Train, judge and register one model; one that the gate refuses is never registered.

    Args:
        recipe: The pipeline, whole.
        force: Stages to compute anew even if the store holds their artifact.
        start: Stage to start from: it and all that follow are computed anew, those before it must
            be in the store.

    Raises:
        SafetyGateError: The gate refused the model; its `outcome` holds report and scores.
    """
    graph = stage_graph(recipe)
    forced, must_reuse = stages_to_compute(graph, force or [], start)
    with open_pipeline(
        recipe, stages=list(graph), forced=forced, must_reuse=must_reuse
    ) as pipeline:
        retries = recipe.cluster.max_retries
        train, evaluate = (
            task.with_options(retries=retries) for task in (train_stage, evaluate_model)
        )
        model = _submit(import_model, pipeline)
        benchmarks = {
            name: _submit(fetch_benchmark, pipeline, name) for name in recipe.evaluation.suites
        }
        demonstrations = _submit(ingest_dataset, pipeline, "demonstrations", "sft", benchmarks)
        preferences = _submit(ingest_dataset, pipeline, "preferences", "preference", benchmarks)

        sft = _submit(train, pipeline, "sft", recipe.sft, model, demonstrations)
        reward_model = _submit(
            train, pipeline, "reward_model", recipe.reward_model, sft, preferences
        )
        aligned = _submit(train, pipeline, recipe.method, recipe.dpo, sft, preferences)

        lineage = {"base": (model, None), "sft": (sft, model), "aligned": (aligned, sft)}
        evaluations = {
            name: _submit(
                evaluate,
                pipeline,
                name,
                judged,
                parent=parent,
                reward_model=reward_model,
                preferences=preferences,
                benchmarks=benchmarks,
            )
            for name, (judged, parent) in lineage.items()
        }
        raise_first_failure(
            [
                *(model, *benchmarks.values(), demonstrations, preferences),
                *(sft, reward_model, aligned, *evaluations.values()),
            ]
        )

        champion = find_champion(pipeline)
        verdict, verdict_artifact = _submit(judge_model, pipeline, evaluations, champion).result()

        version = None
        if verdict.passed:
            version = _submit(
                register_model,
                pipeline,
                aligned,
                parent=sft,
                datasets={"demonstrations": demonstrations, "preferences": preferences},
                evaluation=evaluations["aligned"],
                verdict=verdict,
                verdict_artifact=verdict_artifact,
            ).result()
        artifacts = PipelineArtifacts(
            demonstrations=demonstrations.result(),
            preferences=preferences.result(),
            aligned=aligned.result(),
            evaluations={name: future.result() for name, future in evaluations.items()},
            verdict=verdict_artifact,
        )
        outcome = _submit(write_report, pipeline, artifacts, verdict, version).result()
    if not verdict.passed:
        raise SafetyGateError(outcome.sentence, outcome=outcome)
    return outcome
