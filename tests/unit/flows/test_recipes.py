"""Every recipe that is shipped can be loaded, and its gate asks for scores there will be."""

import subprocess
import sys
from pathlib import Path

import pytest

from alignflow.config import as_yaml, load_config
from alignflow.errors import ConfigError
from alignflow.flows.config import Recipe

RECIPES = sorted((Path(__file__).parents[3] / "deployments/recipes").glob("*.yaml"))
DEMO = next(path for path in RECIPES if path.name == "demo.yaml")


def test_there_are_recipes() -> None:
    names = {path.stem for path in RECIPES}
    assert {
        "demo",
        "demo-lora",
        "demo-ppo",
        "demo-rloo",
        "demo-grpo",
        "demo-steerlm2",
        "smollm2-ultrafeedback",
    } <= names


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_recipe_loads(path: Path) -> None:
    recipe = load_config(Recipe, path, environ={"ALIGNFLOW_DATA": "/data"})
    assert recipe.name == path.stem
    assert bool(recipe.gate.rules) == (recipe.compare is None)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_resolved_recipe_loads_again(path: Path, tmp_path: Path) -> None:
    recipe = load_config(Recipe, path, environ={"ALIGNFLOW_DATA": "/data"})
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(as_yaml(recipe), encoding="utf-8")
    assert load_config(Recipe, resolved) == recipe


def test_misspelt_key_is_named_with_its_line_and_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"dpo\.learning_rat: unknown key; did you mean learnin"):
        load_config(Recipe, DEMO, overrides=["dpo.learning_rat=1e-5"])


def test_rule_on_an_unknown_score_is_refused() -> None:
    with pytest.raises(ConfigError, match="there is no score 'truth/mc1'"):
        load_config(Recipe, DEMO, overrides=["gate.rules.x={score: truth/mc1, at_least: 0.5}"])


@pytest.mark.parametrize(
    ("recipe", "override", "problem"),
    [
        ("demo", "compare={methods: [dpo], seeds: [1]}", r"gate\.rules do nothing"),
        ("demo", "method=steerlm", r"learns from rated answers; give data\.attributes"),
        ("demo", "evaluation.steered_attributes=[humor]", "does nothing without method steerlm"),
        ("demo", "method=steerlm2", r"method steerlm2 learns from rated answers"),
        ("demo-steerlm", "steerlm2_rounds=2", "does nothing without method steerlm2"),
        ("demo-steerlm2", "steerlm2.samples_per_prompt=1", r"steerlm2\.samples_per_prompt"),
        ("demo-steerlm2", "steerlm2.max_new_tokens=256", "to leave a prompt room"),
        (
            "demo-steerlm2",
            "steerlm2.parallel={tensor_model_parallel_size: 2}",
            "data_parallel_size only",
        ),
        ("demo-steerlm", "steerlm.wanted={humour: 4}", r"steerlm\.wanted\.humour"),
        ("demo-steerlm", "steerlm.wanted={humor: 5}", r"steerlm\.wanted\.humor"),
        (
            "demo-steerlm",
            "gate.rules.x={score: steerlm/violence_response, at_least: 0}",
            "there is no score 'steerlm/violence_response'",
        ),
        (
            "demo-steerlm",
            "gate.rules.x={score: steerlm/humor_response, compared_with: sft}",
            "a score of the aligned model alone",
        ),
        (
            "demo",
            "gate.rules.x={score: samples/toxicity, at_most: 1}",
            "there is no score 'samples/toxicity'",
        ),
    ],
)
def test_what_steerlm_lacks_or_others_ask_of_it_is_refused(
    recipe: str, override: str, problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem):
        load_config(Recipe, DEMO.with_name(f"{recipe}.yaml"), overrides=[override])


def test_unpaired_responses_that_no_loss_reads_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"data\.unpaired does nothing under dpo\.loss sigmoid"):
        load_config(Recipe, DEMO, overrides=["data.unpaired={sources: [examples/feedback.jsonl]}"])


def test_resolving_a_recipe_imports_no_heavy_library() -> None:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from alignflow.config import load_config\n"
        "from alignflow.flows.config import Recipe\n"
        f"load_config(Recipe, Path({str(DEMO)!r}))\n"
        "heavy = {'torch', 'prefect', 'mlflow', 'transformers', 'pandera'}\n"
        "print(sorted(heavy & {name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("recipe", "overrides", "problem"),
    [
        ("demo", [], r"judged_win_rate/sft takes a judge; give evaluation\.answer_judge"),
        (
            "demo",
            ["evaluation.answer_judge={model: {source: org/judge}}", "evaluation.num_samples=0"],
            "answer_judge compares sample answers; give num_samples",
        ),
        (
            "demo",
            ["evaluation.answer_judge={model: {source: org/judge, revison: main}}"],
            "did you mean revision",
        ),
        (
            "demo",
            ["evaluation.answer_judge={model: {source: org/judge}, instructions: '{prompt}'}"],
            r"answer_judge\.instructions: .*\{answer_a\} is missing",
        ),
        (
            "demo-methods",
            ["evaluation.answer_judge={model: {source: org/judge}}", "gate.rules={}"],
            r"evaluation\.answer_judge does nothing with compare",
        ),
    ],
)
def test_a_judge_of_answers_that_is_not_there_or_has_nothing_to_do_is_refused(
    recipe: str, overrides: list[str], problem: str
) -> None:
    rule = "gate.rules.wins={score: judged_win_rate/sft, at_least: 0.5}"
    with pytest.raises(ConfigError, match=problem):
        load_config(Recipe, DEMO.with_name(f"{recipe}.yaml"), overrides=[rule, *overrides])


def test_scores_by_a_judge_of_answers_can_gate() -> None:
    rules = {
        name: {"score": score, "at_least": 0.5}
        for name, score in enumerate(
            (
                "judged_win_rate/base",
                "length_controlled_judged_win_rate/champion",
                "answer_judge/consistency",
            )
        )
    }
    overrides = [
        "evaluation.answer_judge={model: {source: org/judge}}",
        *(f"gate.rules.r{name}={rule}" for name, rule in rules.items()),
    ]
    assert len(load_config(Recipe, DEMO, overrides=overrides).gate.rules) > len(rules)
