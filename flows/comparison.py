"""Ways of aligning one model side by side: the shared stages once, then every method and seed."""

from prefect import flow

from alignflow.errors import ConfigError
from alignflow.flows.config import Recipe
from alignflow.flows.graph import (
    own_stages,
    stage_graph,
    stages_to_compute,
    training_stages,
    trial_name,
)
from alignflow.flows.hooks import on_cancellation, run_name
from alignflow.flows.stages import align_model, judge, lay_foundation, submit
from alignflow.tasks.comparison import ComparisonOutcome, Trial, write_comparison
from alignflow.tasks.lifecycle import open_pipeline, raise_first_failure


@flow(name="compare", flow_run_name=run_name, on_cancellation=[on_cancellation])
def compare(
    recipe: Recipe, force: list[str] | None = None, start: str | None = None
) -> ComparisonOutcome:
    """Align the SFT model by every method and seed of `recipe.compare`; register nothing.

    A later run of one of the methods, with one of the seeds, reuses what this made.

    Args:
        recipe: The pipeline.
        force: As in `alignment.align`.
        start: As there.

    Raises:
        ConfigError: The recipe compares nothing.
    """
    if recipe.compare is None:
        raise ConfigError("the recipe compares nothing; give compare.methods and compare.seeds.")
    graph = stage_graph(recipe)
    forced, must_reuse = stages_to_compute(graph, force or [], start)
    with open_pipeline(
        recipe, stages=list(graph), forced=forced, must_reuse=must_reuse
    ) as pipeline:
        base = lay_foundation(pipeline, recipe)
        before = {
            "base": judge(pipeline, recipe, base, "base", base.model, parent=None),
            "sft": judge(pipeline, recipe, base, "sft", base.sft, parent=base.model),
        }
        trials, aligned = [], []
        for method in recipe.compare.methods:
            for seed in recipe.compare.seeds:
                name = trial_name(method, seed)
                model = align_model(pipeline, recipe, base, method, name=name, seed=seed)
                evaluation = judge(pipeline, recipe, base, name, model, parent=base.sft)
                aligned.append(model)
                stages = (*own_stages(method), *training_stages(recipe, method, name))
                trials.append((Trial(method, seed, stages), evaluation))
        evaluations = [evaluation for _, evaluation in trials]
        raise_first_failure([*base.stages, *aligned, *before.values(), *evaluations])
        outcome: ComparisonOutcome = submit(
            write_comparison,
            pipeline,
            {name: future.result() for name, future in before.items()},
            [(trial, evaluation.result()) for trial, evaluation in trials],
        ).result()
    return outcome
