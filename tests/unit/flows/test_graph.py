"""Which stages a run computes anew, given --force and --from."""

from pathlib import Path

import pytest

from alignflow.config import load_config
from alignflow.errors import ConfigError
from alignflow.flows.config import Recipe
from alignflow.flows.graph import (
    StageGraph,
    audited_stages,
    audited_steered_stages,
    own_stages,
    stage_graph,
    stages_to_compute,
    training_stages,
)

DEMO = Path(__file__).parents[3] / "deployments/recipes/demo.yaml"


@pytest.fixture(scope="module")
def graph() -> StageGraph:
    return stage_graph(load_config(Recipe, DEMO))


def test_every_parent_comes_before_its_child(graph: StageGraph) -> None:
    seen: set[str] = set()
    for stage, parents in graph.items():
        assert seen.issuperset(parents), stage
        seen.add(stage)


def test_nothing_asked_for_computes_what_is_not_there(graph: StageGraph) -> None:
    assert stages_to_compute(graph, [], None) == (frozenset(), frozenset())


def test_force_names_one_stage(graph: StageGraph) -> None:
    assert stages_to_compute(graph, ["dpo"], None) == (frozenset({"dpo"}), frozenset())


def test_from_takes_what_follows_and_wants_the_rest_in_the_store(graph: StageGraph) -> None:
    anew, must_reuse = stages_to_compute(graph, [], "dpo")
    assert anew == {"dpo", "evaluate-aligned", "gate", "register", "report"}
    assert {"model", "sft", "reward_model", "evaluate-base", "evaluate-sft"} <= must_reuse
    assert not anew & must_reuse


def test_limits_of_a_stage_that_a_run_starts_from_are_audited_anew(graph: StageGraph) -> None:
    assert set(graph["token_audit"]) == {"model", "demonstrations", "preferences"}
    anew, must_reuse = stages_to_compute(graph, [], "sft")
    assert "token_audit" not in anew | must_reuse


def test_rows_that_a_run_makes_are_audited_once_they_are_made() -> None:
    recipe = load_config(Recipe, DEMO.with_name("demo-steerlm2.yaml"))
    audited = [(stage.config.stage, stage.dataset) for stage in audited_stages(recipe)]
    assert audited == [
        ("sft", "demonstrations"),
        ("reward_model", "preferences"),
        ("attribute_model", "attributes"),
    ]
    steered = [(stage.config.stage, stage.dataset) for stage in audited_steered_stages(recipe)]
    assert steered == [("steerlm", "annotated"), ("steerlm2", "annotated")]
    graph = stage_graph(recipe)
    assert graph["annotated_audit"] == ("model", "annotated")
    # Limits of a stage that a run starts from are looked at anew.
    anew, must_reuse = stages_to_compute(graph, [], "steerlm")
    assert "annotated_audit" not in anew | must_reuse
    once = load_config(Recipe, DEMO.with_name("demo-steerlm.yaml"))
    assert [stage.config.stage for stage in audited_steered_stages(once)] == ["steerlm"]
    assert audited_steered_stages(load_config(Recipe, DEMO)) == []


def test_the_demo_of_steerlm_2_reuses_the_stages_of_that_of_steerlm() -> None:
    once, again = (
        load_config(Recipe, DEMO.with_name(f"demo-{name}.yaml")) for name in ("steerlm", "steerlm2")
    )
    for part in (
        "model",
        "data",
        "sft",
        "reward_model",
        "attribute_model",
        "annotation",
        "steerlm",
    ):
        assert getattr(again, part) == getattr(once, part), part


def test_steerlm_rates_the_demonstrations_before_it_learns_from_them() -> None:
    graph = stage_graph(load_config(Recipe, DEMO.with_name("demo-steerlm.yaml")))
    test_every_parent_comes_before_its_child(graph)
    assert "dpo" not in graph
    assert graph["attribute_model"] == ("sft", "attributes")
    assert graph["annotated"] == ("attribute_model", "demonstrations", "attributes")
    assert graph["steerlm"] == ("sft", "annotated")
    assert "attribute_model" in graph["evaluate-base"]
    anew, _ = stages_to_compute(graph, [], "annotated")
    following = {"steerlm", "evaluate-aligned", "gate", "register", "report"}
    assert anew == {"annotated", "annotated_audit", *following}


def test_steerlm2_learns_from_the_answers_of_steerlm_round_by_round() -> None:
    path = DEMO.with_name("demo-steerlm2.yaml")
    graph = stage_graph(load_config(Recipe, path, overrides=["steerlm2_rounds=3"]))
    test_every_parent_comes_before_its_child(graph)
    further = ("annotated", "attribute_model", "sft")
    assert graph["steerlm"] == ("sft", "annotated")
    assert graph["steerlm2-round-1"] == ("steerlm", *further)
    assert graph["steerlm2-round-2"] == ("steerlm2-round-1", *further)
    assert graph["steerlm2"] == ("steerlm2-round-2", *further)
    assert graph["evaluate-aligned"][:2] == ("steerlm2", "sft")
    anew, _ = stages_to_compute(graph, [], "steerlm2-round-2")
    followers = {"evaluate-aligned", "gate", "register", "report"}
    assert anew == {"steerlm2-round-2", "steerlm2", *followers}
    once = stage_graph(load_config(Recipe, path, overrides=["steerlm2_rounds=1"]))
    assert once["steerlm2"] == ("steerlm", *further)
    assert not any("round" in stage for stage in once)


def test_a_comparison_counts_all_rounds_as_the_trial_s_own() -> None:
    overrides = ["compare={methods: [steerlm, steerlm2], seeds: [7]}", "gate={}"]
    recipe = load_config(Recipe, DEMO.with_name("demo-steerlm2.yaml"), overrides=overrides)
    graph = stage_graph(recipe)
    test_every_parent_comes_before_its_child(graph)
    trained = training_stages(recipe, "steerlm2", "steerlm2-seed-7")
    assert trained == ("steerlm2-seed-7-round-1", "steerlm2-seed-7")
    assert {*own_stages("steerlm2"), *trained} <= graph.keys()
    assert training_stages(recipe, "steerlm", "steerlm-seed-7") == ("steerlm-seed-7",)
    # The model that SteerLM 2.0 starts from is the recipe's, whatever the seed of the trial.
    assert graph["steerlm2-seed-7-round-1"][0] == "steerlm"


def test_rated_answers_judge_the_models_of_every_method(graph: StageGraph) -> None:
    recipe = load_config(
        Recipe, DEMO, overrides=["data.attributes={sources: [examples/attributes.jsonl]}"]
    )
    stages = stage_graph(recipe)
    assert stages.keys() - graph.keys() == {"attributes", "attribute_model"}
    assert "attribute_model" in stages["evaluate-aligned"]


def test_unpaired_responses_are_a_set_that_kto_trains_on() -> None:
    overrides = ["dpo.loss=kto", "data.unpaired={sources: [examples/feedback.jsonl]}"]
    graph = stage_graph(load_config(Recipe, DEMO, overrides=overrides))
    assert graph["dpo"] == ("sft", "unpaired")
    assert graph["unpaired"] == graph["preferences"]
    assert "preferences" in graph["reward_model"]
    anew, _ = stages_to_compute(graph, [], "unpaired")
    following = {"dpo", "evaluate-aligned", "gate", "register", "report"}
    assert anew == {"unpaired", "token_audit", *following}


@pytest.mark.parametrize(("force", "start"), [(["dop"], None), ([], "dop")])
def test_unknown_stage_is_refused_with_the_list(
    graph: StageGraph, force: list[str], start: str | None
) -> None:
    with pytest.raises(ConfigError, match=r"dop: no such stage; stages are model, .*dpo"):
        stages_to_compute(graph, force, start)


def test_ppo_waits_for_the_reward_model(graph: StageGraph) -> None:
    with_ppo = stage_graph(load_config(Recipe, DEMO, overrides=["method=ppo"]))
    assert with_ppo["ppo"] == ("sft", "preferences", "reward_model")
    assert with_ppo.keys() - graph.keys() == {"ppo"}
    assert graph.keys() - with_ppo.keys() == {"dpo"}
    anew, _ = stages_to_compute(with_ppo, [], "reward_model")
    assert {"ppo", "evaluate-aligned"} <= anew


def test_a_comparison_trains_every_method_with_every_seed_on_shared_stages() -> None:
    overrides = ["compare={methods: [dpo, ppo], seeds: [1, 2]}", "gate={}"]
    graph = stage_graph(load_config(Recipe, DEMO, overrides=overrides))
    trials = {f"{method}-seed-{seed}" for method in ("dpo", "ppo") for seed in (1, 2)}
    assert trials <= graph.keys()
    assert {f"evaluate-{trial}" for trial in trials} < set(graph["comparison"])
    assert "reward_model" in graph["ppo-seed-2"]
    assert not {"gate", "register"} & graph.keys()
    anew, must_reuse = stages_to_compute(graph, [], "ppo-seed-1")
    assert anew == {"ppo-seed-1", "evaluate-ppo-seed-1", "comparison"}
    assert "sft" in must_reuse


def test_a_judge_of_answers_adds_two_stages_before_the_gate(graph: StageGraph) -> None:
    overrides = ["evaluation.answer_judge={model: {source: org/judge}}"]
    judged = stage_graph(load_config(Recipe, DEMO, overrides=overrides))
    test_every_parent_comes_before_its_child(judged)
    assert judged.keys() - graph.keys() == {"answer-judge", "duels"}
    assert set(judged["duels"]) == {
        *("answer-judge", "preferences"),
        *("evaluate-base", "evaluate-sft", "evaluate-aligned"),
    }
    assert set(judged["gate"]) - set(graph["gate"]) == {"duels"}
    anew, must_reuse = stages_to_compute(judged, [], "duels")
    assert anew == {"duels", "gate", "register", "report"}
    assert "answer-judge" in must_reuse
