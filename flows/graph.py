"""The stages of a recipe and what each needs: what `--from` and the stage table go by."""

from collections.abc import Iterable

from alignflow.errors import ConfigError
from alignflow.flows.config import ComparisonConfig, Method, Recipe

StageGraph = dict[str, tuple[str, ...]]


def stage_graph(recipe: Recipe) -> StageGraph:
    """Return every stage with its parents, in an order in which they can run."""
    if recipe.compare is not None:
        return _comparison_graph(recipe, recipe.compare)
    method = recipe.method
    judged_on = _judged_on(recipe)
    return {
        **_foundation(recipe),
        method: _parents(recipe, method),
        "evaluate-base": ("model", *judged_on),
        "evaluate-sft": ("sft", "model", *judged_on),
        "evaluate-aligned": (method, "sft", *judged_on),
        "gate": ("evaluate-base", "evaluate-sft", "evaluate-aligned"),
        "register": ("gate", method),
        "report": ("register",),
    }


def trial_name(method: Method, seed: int) -> str:
    """Return the name of the stage that trains by a method with a seed, among several."""
    return f"{method}-seed-{seed}"


def own_stages(method: Method) -> tuple[str, ...]:
    """Return the stages that a method needs between the SFT model and its training."""
    return {
        "dpo": (),
        "ppo": ("reward_model",),
        "steerlm": ("attribute_model", "annotated"),
    }[method]


def _comparison_graph(recipe: Recipe, compare: ComparisonConfig) -> StageGraph:
    judged_on = _judged_on(recipe)
    trials = {
        trial_name(method, seed): _parents(recipe, method)
        for method in compare.methods
        for seed in compare.seeds
    }
    return {
        **_foundation(recipe),
        **trials,
        "evaluate-base": ("model", *judged_on),
        "evaluate-sft": ("sft", "model", *judged_on),
        **{f"evaluate-{trial}": (trial, "sft", *judged_on) for trial in trials},
        "comparison": (
            *("evaluate-base", "evaluate-sft"),
            *(f"evaluate-{trial}" for trial in trials),
        ),
    }


def _foundation(recipe: Recipe) -> StageGraph:
    """Return what every way of aligning a model starts from, and is judged by."""
    suites = _suites(recipe)
    decontaminated_by = suites if recipe.data.decontaminate else ()
    unpaired = {"unpaired": decontaminated_by} if recipe.data.unpaired else {}
    rating: StageGraph = {}
    if recipe.data.attributes is not None:
        rating = {
            "attributes": decontaminated_by,
            "attribute_model": ("sft", "attributes"),
        }
    if "steerlm" in recipe.methods:
        rating["annotated"] = ("attribute_model", "demonstrations", "attributes")
    return {
        "model": (),
        **dict.fromkeys(suites, ()),
        "demonstrations": decontaminated_by,
        "preferences": decontaminated_by,
        **unpaired,
        "sft": ("model", "demonstrations"),
        "reward_model": ("sft", "preferences"),
        **rating,
    }


def _parents(recipe: Recipe, method: Method) -> tuple[str, ...]:
    return {
        "dpo": ("sft", "unpaired" if recipe.data.unpaired else "preferences"),
        "ppo": ("sft", "preferences", "reward_model"),
        "steerlm": ("sft", "annotated"),
    }[method]


def _judged_on(recipe: Recipe) -> tuple[str, ...]:
    rated = ("attribute_model",) if recipe.data.attributes is not None else ()
    return (*_suites(recipe), "preferences", "reward_model", *rated)


def _suites(recipe: Recipe) -> tuple[str, ...]:
    return tuple(f"benchmark-{name}" for name in recipe.evaluation.suites)


def stages_to_compute(
    graph: StageGraph, force: Iterable[str], start: str | None
) -> tuple[frozenset[str], frozenset[str]]:
    """Return the stages to compute anew, and those that have to be in the store already.

    Args:
        graph: The stages and their parents.
        force: Stages to compute anew.
        start: Stage that is computed anew with all that follow from it; every other stage has to be
            in the store.

    Raises:
        ConfigError: A name is no stage of the recipe.
    """
    forced = frozenset(force)
    for option, names in (("--force", forced), ("--from", {start} if start else set())):
        for name in sorted(names - graph.keys()):
            raise ConfigError(f"{option} {name}: no such stage; stages are {', '.join(graph)}.")
    if start is None:
        return forced, frozenset()
    anew = _with_descendants(graph, start)
    return forced | anew, frozenset(graph) - anew - forced


def _with_descendants(graph: StageGraph, start: str) -> frozenset[str]:
    reached = {start}
    for stage, parents in graph.items():
        if reached.intersection(parents):
            reached.add(stage)
    return frozenset(reached)
