"""What the parts of a pipeline submit, and with which parents."""

from pathlib import Path
from typing import Any

import pytest

from alignflow.config import load_config
from alignflow.flows import stages
from alignflow.flows.config import Recipe
from alignflow.flows.stages import Foundation, align_model, lay_foundation

RECIPES = Path(__file__).parents[3] / "deployments/recipes"


@pytest.fixture
def submitted(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[Any, ...]]:
    """Arguments of each stage that was submitted; its future is its name."""
    calls: dict[str, tuple[Any, ...]] = {}

    def submit(
        task: object, pipeline: object, name: object = "model", *arguments: Any, **named: Any
    ) -> str:
        name = str(name)  # of a stage that isn't named by the caller, its first argument
        calls[name] = (*arguments, *(value for value in named.values() if value is not None))
        return name

    monkeypatch.setattr(stages, "submit", submit)
    return calls


def laid(recipe: Recipe) -> Foundation:
    pipeline: Any = None  # nothing of it is looked at before a task runs
    base = lay_foundation(pipeline, recipe)
    align_model(pipeline, recipe, base, recipe.method)
    return base


def test_a_model_is_aligned_on_the_preferences(submitted: dict[str, tuple[Any, ...]]) -> None:
    recipe = load_config(Recipe, RECIPES / "demo.yaml")
    base = laid(recipe)
    assert submitted["dpo"] == (recipe.dpo, "sft", "preferences")
    assert submitted["sft"] == (recipe.sft, "model", "demonstrations", [base.token_audit])
    assert base.datasets.keys() == {"demonstrations", "preferences"}
    assert set(map(str, base.stages)) == submitted.keys() - {"dpo"}


def test_kto_takes_the_unpaired_responses_where_there_are_some(
    submitted: dict[str, tuple[Any, ...]],
) -> None:
    recipe = load_config(Recipe, RECIPES / "demo-kto.yaml")
    base = laid(recipe)
    assert submitted["dpo"] == (recipe.dpo, "sft", "unpaired")
    assert submitted["unpaired"][0] == "unpaired"  # its kind
    assert submitted["reward_model"] == (recipe.reward_model, "sft", "preferences")
    assert base.datasets.keys() == {"demonstrations", "preferences", "unpaired"}
    assert set(map(str, base.stages)) == submitted.keys() - {"dpo"}


def test_a_trial_differs_by_its_seed_alone(submitted: dict[str, tuple[Any, ...]]) -> None:
    recipe = load_config(Recipe, RECIPES / "demo.yaml")
    pipeline: Any = None
    base = lay_foundation(pipeline, recipe)
    align_model(pipeline, recipe, base, "dpo", name="dpo-seed-7", seed=7)
    align_model(pipeline, recipe, base, "ppo", name="ppo-seed-7", seed=7)
    assert submitted["dpo-seed-7"] == (recipe.dpo.replaced(seed=7), "sft", "preferences")
    ppo = (recipe.ppo.replaced(seed=7), "sft", "preferences", "reward_model")
    assert submitted["ppo-seed-7"] == ppo


def test_a_round_of_steerlm2_starts_from_the_one_before_with_another_seed(
    submitted: dict[str, tuple[Any, ...]],
) -> None:
    recipe = load_config(Recipe, RECIPES / "demo-steerlm2.yaml")
    base = laid(recipe)
    config, again = recipe.steerlm2, recipe.steerlm2.replaced(seed=recipe.steerlm2.seed + 1)
    further = (base.annotated, "attribute_model", "sft")
    audits = [base.annotated_audit]
    assert submitted["steerlm"] == (recipe.steerlm, "sft", base.annotated, audits)
    assert submitted["steerlm2-round-1"] == (config, "steerlm", *further, audits)
    assert submitted["steerlm2"] == (again, "steerlm2-round-1", *further, audits)
    assert submitted["annotated_audit"][1:] == ("model", {"annotated": base.annotated})
    assert base.annotated_audit in base.stages
    assert base.steerlm in base.stages
