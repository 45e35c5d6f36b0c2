"""The stages of a recipe and what each needs: what `--from` and the stage table go by."""

from collections.abc import Iterable

from alignflow.errors import ConfigError
from alignflow.flows.config import Method, Recipe

StageGraph = dict[str, tuple[str, ...]]


def stage_graph(recipe: Recipe) -> StageGraph:
    """Return every stage with its parents, in an order in which they can run."""
    suites = tuple(f"benchmark-{name}" for name in recipe.evaluation.suites)
    decontaminated_by = suites if recipe.data.decontaminate else ()
    judged_on: tuple[str, ...] = (*suites, "preferences", "reward_model")
    unpaired = {"unpaired": decontaminated_by} if recipe.data.unpaired else {}
    rating: StageGraph = {}
    if recipe.data.attributes is not None:
        judged_on += ("attribute_model",)
        rating = {
            "attributes": decontaminated_by,
            "attribute_model": ("sft", "attributes"),
        }
    if recipe.method == "steerlm":
        rating["annotated"] = ("attribute_model", "demonstrations", "attributes")
    parents: dict[Method, tuple[str, ...]] = {
        "dpo": ("sft", "unpaired" if unpaired else "preferences"),
        "ppo": ("sft", "preferences", "reward_model"),
        "steerlm": ("sft", "annotated"),
    }
    return {
        "model": (),
        **dict.fromkeys(suites, ()),
        "demonstrations": decontaminated_by,
        "preferences": decontaminated_by,
        **unpaired,
        "sft": ("model", "demonstrations"),
        "reward_model": ("sft", "preferences"),
        **rating,
        recipe.method: parents[recipe.method],
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
