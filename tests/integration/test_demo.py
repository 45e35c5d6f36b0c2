"""The demo through the command line, whole: run, run again, refuse. Takes minutes."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(2400)]

ROOT = Path(__file__).parents[2]
Run = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run the demo in a workspace of its own; returns exit code and outcome."""
    workspace = tmp_path_factory.mktemp("demo")

    def demo(*overrides: str) -> tuple[int, dict[str, Any]]:
        settings = [f"workspace={workspace}", *overrides]
        done = subprocess.run(
            [
                *(sys.executable, "-c", "from alignflow.cli import main; main()"),
                *("run", "deployments/recipes/demo.yaml", "--json"),
                *(word for item in settings for word in ("--set", item)),
            ],
            cwd=ROOT,
            env={**os.environ, "PREFECT_HOME": str(workspace / "prefect")},
            capture_output=True,
            text=True,
        )
        return done.returncode, json.loads(done.stdout)

    return demo


def test_demo_improves_preference_and_is_reused(run: Run) -> None:
    code, first = run()
    assert code == 0
    scores = {row["name"]: row["values"] for row in first["scores"]}
    accuracy = scores["preference/per_token_accuracy"]
    assert accuracy["aligned"] > accuracy["base"]

    began = time.monotonic()
    code, again = run()
    assert code == 0
    assert time.monotonic() - began < 60
    assert set(again["stages"].values()) == {"reused"}
    assert again["model_version"] == first["model_version"]


def test_impossible_rule_refuses_and_registers_nothing(run: Run) -> None:
    code, outcome = run("gate.rules.learned_preference.at_least=1.01")
    assert code == 3
    assert outcome["model_version"] is None
    assert "preference/implicit_accuracy" in outcome["reasons"][0]
