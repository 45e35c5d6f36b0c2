"""Promotions that die between two writes, and promotions at once: the registry stays whole."""

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.integration

WORKER = Path(__file__).parent / "workers" / "killed_promotion.py"
BEFORE = {"champion": "1", "candidate": "2"}
AFTER = {"champion": "2", "previous": "1"}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("faults")
    done = subprocess.run(
        [sys.executable, WORKER, f"sqlite:///{folder / 'mlflow.db'}", folder],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def test_a_killed_promotion_is_made_or_not_made(told: dict[str, Any]) -> None:
    first, *others = told["killed"]
    # Killed before the decision was written: there was none.
    assert (first["left"], first["repaired"]) == (BEFORE, BEFORE)
    assert len(first["decisions"]) == 1
    for each in others:
        assert each["repaired"] == AFTER
        assert [decision["version"] for decision in each["decisions"]] == ["1", "2"]
        assert each["tagged"] == "promoted"
    # Some were killed between two aliases, so there was something to repair.
    halves = [each["left"] for each in others if each["left"] not in (BEFORE, AFTER)]
    assert {"champion": "1", "previous": "1", "candidate": "2"} in halves
    assert {"champion": "2", "previous": "1", "candidate": "2"} in halves


def test_promotions_at_once_follow_one_another(told: dict[str, Any]) -> None:
    at_once = told["at_once"]
    assert at_once["outcomes"] == ["lived"] * 4
    decisions = at_once["decisions"]
    assert [d["number"] for d in decisions] == [1, 2, 3, 4, 5]
    assert sorted(d["version"] for d in decisions) == ["1", "2", "3", "4", "5"]
    for earlier, later in pairwise(decisions):
        assert later["before"]["champion"] == earlier["version"]
        assert later["after"]["previous"] == earlier["version"]
    last = decisions[-1]["after"]
    # What users see is the last decision's.
    assert at_once["left"] == at_once["repaired"] == last
