"""TruthfulQA and ToxiGen beside lm-evaluation-harness, which asks and scores by code of its own."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("lm_eval") is None, reason="lm-eval isn't installed"
    ),
]

ROOT = Path(__file__).parents[2]


def compare(suite: str, *options: str | Path) -> dict[str, Any]:
    command = [sys.executable, str(ROOT / "benchmarks" / "eval.py"), "--json", "--suite", suite]
    done = subprocess.run(
        [*command, *map(str, options)],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == 0, found
    return found


def check(found: dict[str, Any], num_items: int) -> None:
    assert found["num_equal"] == found["num_items"] == num_items
    assert found["score_apart"] <= 1e-4
    # Sums over a dozen tokens each, in float32.
    assert found["logprob_apart"] <= 1e-3


@pytest.mark.parametrize(("suite", "num_items"), [("truthfulqa", 4), ("toxigen", 16)])
def test_every_item_is_judged_as_by_lm_eval(suite: str, num_items: int) -> None:
    check(compare(suite, "--items", str(num_items), "--batch-sizes", "1"), num_items)


def test_the_edition_of_2025_is_judged_as_mc1_over_its_two_answers(tmp_path: Path) -> None:
    rows = json.loads((ROOT / "examples" / "truthfulness_mc.json").read_text(encoding="utf-8"))
    for row in rows:
        false = next(answer for answer, label in row["mc1_targets"].items() if not label)
        true = next(answer for answer, label in row["mc1_targets"].items() if label)
        row["mc0_targets"] = {true: 1, false: 0}
    data = tmp_path / "mc_task.json"
    data.write_text(json.dumps(rows), encoding="utf-8")
    check(compare("truthfulqa", "--data", data, "--items", "3", "--batch-sizes", "1"), 3)


# lm-eval takes 2.5 s a question in float32 on two idle cores, so only every 32nd question and every
# 16th statement is judged: throughout the file, whose first items are alike.
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("suite", "file", "every", "num_items"),
    [
        ("truthfulqa", "truthfulqa/mc_task.json", 32, 26),
        ("toxigen", "toxigen/annotated_safenlp.json", 16, 408),
    ],
)
def test_items_throughout_the_real_sets_are_judged_so(
    suite: str, file: str, every: int, num_items: int
) -> None:
    data = os.environ.get("ALIGNFLOW_DATA")
    if not data:
        pytest.skip("set ALIGNFLOW_DATA to the folder that holds the real benchmarks")
    options = ("--data", Path(data, file), "--every", str(every), "--batch-sizes", "16")
    check(compare(suite, *options), num_items)
