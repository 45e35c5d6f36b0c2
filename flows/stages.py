"""The parts that pipelines are put together from: each submits stages and returns their futures."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from prefect.futures import PrefectFuture
from prefect.tasks import Task

from alignflow.artifacts import Artifact
from alignflow.flows.config import Method, Recipe
from alignflow.tasks.data import fetch_benchmark, ingest_dataset
from alignflow.tasks.evaluate import evaluate_model
from alignflow.tasks.model import import_model
from alignflow.tasks.pipeline import Pipeline
from alignflow.tasks.train import train_stage

R = TypeVar("R")
Future = PrefectFuture[Artifact]


@dataclass(frozen=True)
class Foundation:
    """What every way of aligning a model starts from, and is judged by."""

    model: Future
    benchmarks: Mapping[str, Future]
    demonstrations: Future
    preferences: Future
    sft: Future
    reward_model: Future

    @property
    def stages(self) -> list[Future]:
        """All of them."""
        return [
            *(self.model, *self.benchmarks.values(), self.demonstrations, self.preferences),
            *(self.sft, self.reward_model),
        ]


def submit(task: Task[..., R], *args: Any, **kwargs: Any) -> PrefectFuture[R]:
    """Submit a task whose arguments may be futures of other tasks."""
    return task.submit(*args, **kwargs, return_state=False)


def lay_foundation(pipeline: Pipeline, recipe: Recipe) -> Foundation:
    """Submit all stages up to the SFT model and the reward model."""
    train = train_stage.with_options(retries=recipe.cluster.max_retries)
    model = submit(import_model, pipeline)
    benchmarks = {
        name: submit(fetch_benchmark, pipeline, name) for name in recipe.evaluation.suites
    }
    demonstrations = submit(ingest_dataset, pipeline, "demonstrations", "sft", benchmarks)
    preferences = submit(ingest_dataset, pipeline, "preferences", "preference", benchmarks)
    sft = submit(train, pipeline, "sft", recipe.sft, model, demonstrations)
    reward_model = submit(train, pipeline, "reward_model", recipe.reward_model, sft, preferences)
    return Foundation(model, benchmarks, demonstrations, preferences, sft, reward_model)


def align_model(pipeline: Pipeline, recipe: Recipe, base: Foundation, method: Method) -> Future:
    """Submit the stages that align the SFT model in one way."""
    train = train_stage.with_options(retries=recipe.cluster.max_retries)
    match method:
        case "dpo":
            return submit(train, pipeline, method, recipe.dpo, base.sft, base.preferences)
        case "ppo":
            return submit(
                train,
                pipeline,
                method,
                recipe.ppo,
                base.sft,
                base.preferences,
                reward_model=base.reward_model,
            )


def judge(
    pipeline: Pipeline,
    recipe: Recipe,
    base: Foundation,
    name: str,
    model: Future,
    *,
    parent: Future | None,
) -> Future:
    """Submit the evaluation of one model."""
    evaluate = evaluate_model.with_options(retries=recipe.cluster.max_retries)
    return submit(
        evaluate,
        pipeline,
        name,
        model,
        parent=parent,
        reward_model=base.reward_model,
        preferences=base.preferences,
        benchmarks=base.benchmarks,
    )
