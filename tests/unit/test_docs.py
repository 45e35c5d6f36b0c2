"""What the documentation names is there."""

import re
from pathlib import Path

import pytest
import yaml

from alignflow.tasks.config import ClusterConfig

ROOT = Path(__file__).parents[2]
NAMED_TESTS = sorted(
    set(re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?", (ROOT / "docs/pitfalls.md").read_text()))
)
COMMANDS = re.findall(
    r"^alignflow (?:run|config show) (\S+\.yaml)", (ROOT / "README.md").read_text(), re.MULTILINE
)


CLUSTERS = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/clusters.md").read_text(), re.DOTALL)


def test_pitfalls_name_tests() -> None:
    assert len(NAMED_TESTS) > 10


@pytest.mark.parametrize(("path", "name"), NAMED_TESTS)
def test_a_named_test_is_there(path: str, name: str) -> None:
    text = (ROOT / path).read_text()
    assert not name or re.search(rf"^(?:    )?(?:def|class) {name}\b", text, re.MULTILINE)


@pytest.mark.parametrize("recipe", [path for path in COMMANDS if "/" in path])
def test_a_recipe_of_the_readme_is_there(recipe: str) -> None:
    assert (ROOT / recipe).is_file()


@pytest.mark.parametrize("text", CLUSTERS, ids=range(len(CLUSTERS)))
def test_a_cluster_of_the_documentation_can_be_loaded(text: str) -> None:
    ClusterConfig.model_validate(yaml.safe_load(text)["cluster"])
