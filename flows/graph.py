"""The stages of a recipe and what each needs: what `--from` and the stage table go by."""

from collections.abc import Iterable

from alignflow.errors import ConfigError
from alignflow.flows.config import Method, Recipe

StageGraph = dict[str, tuple[str, ...]]

_PARENTS: dict[Method, tuple[str, ...]] = {
    "dpo": ("sft", "preferences"),
    "ppo": ("sft", "preferences", "reward_model"),
}
"""What each way of aligning a model starts from."""


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
        recipe.method: _PARENTS[recipe.method],
        "evaluate-base": ("model", *judged_on),
        "evaluate-sft": ("sft", "model", *judged_on),
        "evaluate-aligned": (recipe.method, "sft", *judged_on),
        "gate": ("evaluate-base", "evaluate-sft", "evaluate-aligned"),
        "register": ("gate", recipe.method),
        "report": ("register",),
    }


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
