"""The parts that pipelines are put together from: each submits stages and returns their futures."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

from prefect.futures import PrefectFuture
from prefect.tasks import Task

from alignflow.artifacts import Artifact
from alignflow.flows.config import STEERED_METHODS, Method, Recipe
from alignflow.flows.graph import audited_stages, audited_steered_stages, training_stages
from alignflow.reporting.model import ModelRole
from alignflow.tasks.annotate import annotate_demonstrations
from alignflow.tasks.audit import AUDIT_STAGE, MADE_ROWS_AUDIT_STAGE, audit_tokens
from alignflow.tasks.data import fetch_benchmark, ingest_dataset
from alignflow.tasks.duels import judge_answers
from alignflow.tasks.evaluate import evaluate_model
from alignflow.tasks.judges import JudgeName, provide_judge
from alignflow.tasks.model import import_answer_judge, import_model
from alignflow.tasks.pipeline import Pipeline
from alignflow.tasks.tracking import RegisteredVersion
from alignflow.tasks.train import train_stage
from alignflow.training.config import DPOConfig, PPOConfig, SteerLM2Config, SteerLMConfig

P = ParamSpec("P")
R = TypeVar("R")
Future = PrefectFuture[Artifact]


@dataclass(frozen=True)
class Foundation:
    """What every way of aligning a model starts from, and is judged by."""

    model: Future
    benchmarks: Mapping[str, Future]
    judges: Mapping[JudgeName, Future]
    demonstrations: Future
    preferences: Future
    unpaired: Future | None
    token_audit: Future
    sft: Future
    reward_model: Future
    attributes: Future | None = None
    attribute_model: Future | None = None
    annotated: Future | None = None
    """The demonstrations with ratings, where SteerLM learns from them."""
    annotated_audit: Future | None = None
    steerlm: Future | None = None
    """The model that SteerLM 2.0 starts from."""
    answer_judge: Future | None = None
    """The language model that compares the models' answers."""

    @property
    def stages(self) -> list[Future]:
        """All of them."""
        further = (
            *(self.attributes, self.attribute_model),
            *(self.annotated, self.annotated_audit, self.steerlm),
            self.answer_judge,
        )
        return [
            *(self.model, *self.benchmarks.values(), *self.judges.values()),
            *(self.demonstrations, self.preferences),
            *([self.unpaired] if self.unpaired else []),
            *(self.token_audit, self.sft, self.reward_model),
            *(stage for stage in further if stage is not None),
        ]

    @property
    def datasets(self) -> dict[str, Future]:
        """The training sets, by name in the recipe."""
        named = {
            "demonstrations": self.demonstrations,
            "preferences": self.preferences,
            "unpaired": self.unpaired,
            "attributes": self.attributes,
        }
        return {name: future for name, future in named.items() if future is not None}


def submit(task: Task[..., R], *args: Any, **kwargs: Any) -> PrefectFuture[R]:
    """Submit a task whose arguments may be futures of other tasks."""
    return task.submit(*args, **kwargs, return_state=False)


def with_retries(task: Task[P, R], recipe: Recipe) -> Task[P, R]:
    """Return a task that is tried again as often as the recipe says."""
    retries = recipe.cluster.max_retries
    # Not a copy where none is needed: making one takes Prefect a tenth of a second.
    return task if task.retries == retries else task.with_options(retries=retries)


def lay_foundation(pipeline: Pipeline, recipe: Recipe) -> Foundation:
    """Submit all stages up to the SFT model and the reward model."""
    train = with_retries(train_stage, recipe)
    model = submit(import_model, pipeline)
    benchmarks = {
        name: submit(fetch_benchmark, pipeline, name) for name in recipe.evaluation.benchmarks
    }
    provide = with_retries(provide_judge, recipe)
    judges = {
        (name, task): submit(provide, pipeline, (name, task))
        for name, suite in recipe.evaluation.suites.items()
        for task in suite.judges
    }
    answer_judge = (
        submit(import_answer_judge, pipeline, recipe.evaluation.answer_judge)
        if recipe.evaluation.answer_judge
        else None
    )
    demonstrations = submit(ingest_dataset, pipeline, "demonstrations", "sft", benchmarks)
    preferences = submit(ingest_dataset, pipeline, "preferences", "preference", benchmarks)
    unpaired = (
        submit(ingest_dataset, pipeline, "unpaired", "unpaired", benchmarks)
        if recipe.data.unpaired
        else None
    )
    attributes = (
        submit(ingest_dataset, pipeline, "attributes", "steerlm", benchmarks)
        if recipe.data.attributes
        else None
    )
    audited = audited_stages(recipe)
    sets = {
        "demonstrations": demonstrations,
        "preferences": preferences,
        "unpaired": unpaired,
        "attributes": attributes,
    }
    audit_task = with_retries(audit_tokens, recipe)
    audit = submit(
        audit_task,
        pipeline,
        AUDIT_STAGE,
        audited,
        model,
        {name: sets[name] for name in dict.fromkeys(stage.dataset for stage in audited)},
    )
    sft = submit(train, pipeline, "sft", recipe.sft, model, demonstrations, wait_for=[audit])
    reward_model = submit(train, pipeline, "reward_model", recipe.reward_model, sft, preferences)
    attribute_model = annotated = annotated_audit = steerlm = None
    if attributes is not None:
        attribute_model = submit(
            train, pipeline, "attribute_model", recipe.attribute_model, sft, attributes
        )
    if STEERED_METHODS.intersection(recipe.methods):
        annotate = with_retries(annotate_demonstrations, recipe)
        annotated = submit(
            annotate,
            pipeline,
            recipe.annotation,
            attribute_model,
            demonstrations=demonstrations,
            rated=attributes,
        )
        annotated_audit = submit(
            audit_task,
            pipeline,
            MADE_ROWS_AUDIT_STAGE,
            audited_steered_stages(recipe),
            model,
            {"annotated": annotated},
        )
    if "steerlm2" in recipe.methods:
        steerlm = submit(
            train, pipeline, "steerlm", recipe.steerlm, sft, annotated, wait_for=[annotated_audit]
        )
    return Foundation(
        model,
        benchmarks,
        judges,
        demonstrations,
        preferences,
        unpaired,
        audit,
        sft,
        reward_model,
        attributes,
        attribute_model,
        annotated,
        annotated_audit,
        steerlm,
        answer_judge,
    )


def align_model(
    pipeline: Pipeline,
    recipe: Recipe,
    base: Foundation,
    method: Method,
    *,
    name: str | None = None,
    seed: int | None = None,
) -> Future:
    """Submit the stages that align the SFT model in one way; returns the last one's future.

    Args:
        pipeline: The run.
        recipe: The pipeline, whole.
        base: What the method starts from.
        method: The way.
        name: Of the last stage; that of the method by itself.
        seed: Instead of the one that the recipe gives the method.
    """
    config: DPOConfig | PPOConfig | SteerLMConfig | SteerLM2Config = getattr(recipe, method)
    if seed is not None:
        config = config.replaced(seed=seed)
    of_method: dict[Method, tuple[Future | None, dict[str, Future | None]]] = {
        "dpo": (base.unpaired or base.preferences, {}),
        "ppo": (base.preferences, {"reward_model": base.reward_model}),
        "steerlm": (base.annotated, {}),
        "steerlm2": (
            base.annotated,
            {"attribute_model": base.attribute_model, "prior_model": base.sft},
        ),
    }
    dataset, judges = of_method[method]
    audits = [base.annotated_audit] if dataset is base.annotated else None
    train = with_retries(train_stage, recipe)

    def trained(number: int, stage: str, model: Future | None) -> Future:
        # Another round asks other prompts and draws anew.
        of_round = config.replaced(seed=config.seed + number) if number else config
        return submit(train, pipeline, stage, of_round, model, dataset, **judges, wait_for=audits)

    *earlier, last = enumerate(training_stages(recipe, method, name or method))
    model = base.steerlm if method == "steerlm2" else base.sft
    for number, stage in earlier:
        model = trained(number, stage, model)
    return trained(*last, model)


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
    evaluate = with_retries(evaluate_model, recipe)
    return submit(
        evaluate,
        pipeline,
        name,
        model,
        parent=parent,
        reward_model=base.reward_model,
        attribute_model=base.attribute_model,
        preferences=base.preferences,
        benchmarks=base.benchmarks,
        judges=base.judges,
    )


def compare_answers(
    pipeline: Pipeline,
    recipe: Recipe,
    base: Foundation,
    evaluations: Mapping[ModelRole, Future],
    champion: RegisteredVersion | None,
) -> Artifact | None:
    """Return what the judge of answers says of the models, None in a recipe without one."""
    if base.answer_judge is None:
        return None
    compared: Future = submit(
        with_retries(judge_answers, recipe),
        pipeline,
        recipe.evaluation.answer_judge,
        base.answer_judge,
        evaluations=evaluations,
        champion=champion,
        preferences=base.preferences,
    )
    return compared.result()
