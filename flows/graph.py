"""The stages of a recipe and what each needs: what `--from` and the stage table go by."""

from collections.abc import Iterable

from alignflow.errors import ConfigError
from alignflow.flows.config import STEERED_METHODS, ComparisonConfig, Method, Recipe
from alignflow.training.token_audit import AuditedStage

StageGraph = dict[str, tuple[str, ...]]


def stage_graph(recipe: Recipe) -> StageGraph:
    """Return every stage with its parents, in an order in which they can run."""
    if recipe.compare is not None:
        return _comparison_graph(recipe, recipe.compare)
    method = recipe.method
    judged_on = _judged_on(recipe)
    return {
        **_foundation(recipe),
        **_training(recipe, method, method),
        "evaluate-base": ("model", *judged_on),
        "evaluate-sft": ("sft", "model", *judged_on),
        "evaluate-aligned": (method, "sft", *judged_on),
        **_duels(recipe),
        "gate": (
            *("evaluate-base", "evaluate-sft", "evaluate-aligned"),
            *(("duels",) if recipe.evaluation.answer_judge else ()),
        ),
        "register": ("gate", method),
        "report": ("register",),
    }


def _duels(recipe: Recipe) -> StageGraph:
    """Return the stages of a judge that compares the models' answers, where there is one."""
    if recipe.evaluation.answer_judge is None:
        return {}
    models = ("evaluate-base", "evaluate-sft", "evaluate-aligned")
    return {"answer-judge": (), "duels": ("answer-judge", *models, "preferences")}


def trial_name(method: Method, seed: int) -> str:
    """Return the name of the stage that trains by a method with a seed, among several."""
    return f"{method}-seed-{seed}"


def own_stages(method: Method) -> tuple[str, ...]:
    """Return the stages that a method needs between the SFT model and its training."""
    return {
        "dpo": (),
        "ppo": ("reward_model",),
        "steerlm": ("attribute_model", "annotated"),
        "steerlm2": ("attribute_model", "annotated", "steerlm"),
    }[method]


def training_stages(recipe: Recipe, method: Method, name: str) -> tuple[str, ...]:
    """Return the stages that train by a method one after another, the last of which has the name.

    Those before it are the earlier rounds of SteerLM 2.0.
    """
    rounds = recipe.steerlm2_rounds if method == "steerlm2" else 1
    return (*(f"{name}-round-{number}" for number in range(1, rounds)), name)


def _comparison_graph(recipe: Recipe, compare: ComparisonConfig) -> StageGraph:
    judged_on = _judged_on(recipe)
    trials = {
        trial_name(method, seed): method for method in compare.methods for seed in compare.seeds
    }
    trained: StageGraph = {}
    for trial, method in trials.items():
        trained |= _training(recipe, method, trial)
    return {
        **_foundation(recipe),
        **trained,
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
    attributes: StageGraph = {}
    rating: StageGraph = {}
    if recipe.data.attributes is not None:
        attributes = {"attributes": decontaminated_by}
        rating = {"attribute_model": ("sft", "attributes")}
    if STEERED_METHODS.intersection(recipe.methods):
        rating["annotated"] = ("attribute_model", "demonstrations", "attributes")
        rating["annotated_audit"] = ("model", "annotated")
    if "steerlm2" in recipe.methods:
        rating["steerlm"] = ("sft", "annotated")
    audited = {stage.dataset: None for stage in audited_stages(recipe)}
    return {
        "model": (),
        **dict.fromkeys(suites, ()),
        **dict.fromkeys(_judges(recipe), ()),
        "demonstrations": decontaminated_by,
        "preferences": decontaminated_by,
        **unpaired,
        **attributes,
        # What is trained waits for it, but isn't made from it.
        "token_audit": ("model", *audited),
        "sft": ("model", "demonstrations"),
        "reward_model": ("sft", "preferences"),
        **rating,
    }


def audited_stages(recipe: Recipe) -> list[AuditedStage]:
    """Return the training stages whose rows can be audited before anything is trained."""
    stages = [
        AuditedStage(config=recipe.sft, dataset="demonstrations"),
        AuditedStage(config=recipe.reward_model, dataset="preferences"),
    ]
    if recipe.data.attributes is not None:
        stages.append(AuditedStage(config=recipe.attribute_model, dataset="attributes"))
    if "dpo" in recipe.methods:
        dataset = "unpaired" if recipe.data.unpaired else "preferences"
        stages.append(AuditedStage(config=recipe.dpo, dataset=dataset))
    if "ppo" in recipe.methods:
        stages.append(AuditedStage(config=recipe.ppo, dataset="preferences"))
    return stages


def audited_steered_stages(recipe: Recipe) -> list[AuditedStage]:
    """Return the training stages whose rows are audited once an attribute model has rated them."""
    if not STEERED_METHODS.intersection(recipe.methods):
        return []
    stages = [AuditedStage(config=recipe.steerlm, dataset="annotated")]
    if "steerlm2" in recipe.methods:
        # Its prompts; a further round asks the same ones.
        wanted = recipe.steerlm.wanted
        stages.append(AuditedStage(config=recipe.steerlm2, dataset="annotated", wanted=wanted))
    return stages


def _training(recipe: Recipe, method: Method, name: str) -> StageGraph:
    """Return the stages that train by a method, the last of which has the name."""
    start = "steerlm" if method == "steerlm2" else "sft"
    further = {
        "dpo": ("unpaired" if recipe.data.unpaired else "preferences",),
        "ppo": ("preferences", "reward_model"),
        "steerlm": ("annotated",),
        "steerlm2": ("annotated", "attribute_model", "sft"),
    }[method]
    stages = training_stages(recipe, method, name)
    return {
        stage: (before, *further)
        for before, stage in zip((start, *stages[:-1]), stages, strict=True)
    }


def _judged_on(recipe: Recipe) -> tuple[str, ...]:
    rated = ("attribute_model",) if recipe.data.attributes is not None else ()
    return (*_suites(recipe), *_judges(recipe), "preferences", "reward_model", *rated)


def _suites(recipe: Recipe) -> tuple[str, ...]:
    return tuple(f"benchmark-{name}" for name in recipe.evaluation.benchmarks)


def _judges(recipe: Recipe) -> tuple[str, ...]:
    return tuple(
        f"judge-{name}-{task}"
        for name, suite in recipe.evaluation.suites.items()
        for task in suite.judges
    )


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
    # A stage that is computed anew may have other limits, which the audit has to see.
    audits = {"token_audit", "annotated_audit"}
    return forced | anew, frozenset(graph) - anew - forced - audits


def _with_descendants(graph: StageGraph, start: str) -> frozenset[str]:
    reached = {start}
    for stage, parents in graph.items():
        if reached.intersection(parents):
            reached.add(stage)
    return frozenset(reached)
