"""`alignflow run`, up to the pipeline."""

import gc
from pathlib import Path

import pytest

from alignflow.cli.runs import run
from alignflow.errors import ConfigError


def test_garbage_is_looked_for_again_after_a_recipe_that_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        run(tmp_path / "recipe.yaml")
    assert gc.isenabled()
