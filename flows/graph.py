"""The stages of a recipe and what each needs: what `--from` and the stage table go by."""

from collections.abc import Iterable

from alignflow.errors import ConfigError
from alignflow.flows.config import Recipe

StageGraph = dict[str, tuple[str, ...]]


def stage_graph(recipe: Recipe) -> StageGraph:
    """Return every stage with its parents, in an order in which they can run."""
    suites = tuple(f"benchmark-{name}" for name in recipe.evaluation.suites)
    decontaminated_by = suites if recipe.data.decontaminate else ()
    judged_on = (*suites, "preferences", "reward_model")
    return {
        "model": (),
        **dict.fromkeys(suites, ()),
        "demonstrations": decontaminated_by,
        "preferences": decontaminated_by,
        "sft": ("model", "demonstrations"),
        "reward_model": ("sft", "preferences"),
        recipe.method: ("sft", "preferences"),
        "evaluate-base": ("model", *judged_on),
        "evaluate-sft": ("sft", "model", *judged_on),
        "evaluate-aligned": (recipe.method, "sft", *judged_on),
        "gate": ("evaluate-base", "evaluate-sft", "evaluate-aligned"),
        "register": ("gate", recipe.method),
        "report": ("register",),
    }


def with_descendants(graph: StageGraph, start: str) -> frozenset[str]:
    """Return the stage and all that follow from it."""
    reached = {start}
    for stage, parents in graph.items():
        if reached.intersection(parents):
            reached.add(stage)
    return frozenset(reached)


def check_stages(graph: StageGraph, names: Iterable[str], option: str) -> None:
    """Refuse a name that is no stage of the recipe.

    Raises:
        ConfigError: Names the option and the stages there are.
    """
    for name in names:
        if name not in graph:
            raise ConfigError(f"{option} {name}: no such stage; stages are {', '.join(graph)}.")
