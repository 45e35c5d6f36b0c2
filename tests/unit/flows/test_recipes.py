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
    assert {"demo", "demo-ppo", "demo-rloo", "demo-grpo", "smollm2-ultrafeedback"} <= names


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_recipe_loads(path: Path) -> None:
    recipe = load_config(Recipe, path, environ={"ALIGNFLOW_DATA": "/data"})
    assert recipe.name == path.stem
    assert recipe.gate.rules


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_resolved_recipe_loads_again(path: Path, tmp_path: Path) -> None:
    recipe = load_config(Recipe, path, environ={"ALIGNFLOW_DATA": "/data"})
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(as_yaml(recipe), encoding="utf-8")
    assert load_config(Recipe, resolved) == recipe


def test_misspelt_key_is_named_with_its_line_and_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"dpo\.learning_rat: unknown key; did you mean learnin"):
        load_config(Recipe, DEMO, overrides=["dpo.learning_rat=1e-5"])


def test_rule_on_an_unknown_suite_is_refused() -> None:
    with pytest.raises(ConfigError, match="there is no suite 'truth'"):
        load_config(Recipe, DEMO, overrides=["gate.rules.x={score: truth/mc1, at_least: 0.5}"])


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
