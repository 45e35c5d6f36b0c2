"""The suite that the documentation shows, installed and run as it says."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

TEXT = (Path(__file__).parents[2] / "docs" / "suites.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)
    return str(found)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the package of the documentation is installed."""
    source = tmp_path_factory.mktemp("capitals")
    (source / "capitals.py").write_text(block("python"), encoding="utf-8")
    (source / "pyproject.toml").write_text(block("toml"), encoding="utf-8")
    target = tmp_path_factory.mktemp("site")
    install = [*(sys.executable, "-m", "uv", "pip", "install", "--quiet", "--offline")]
    options = ["--no-deps", "--no-build-isolation", "--target", str(target)]
    subprocess.run([*install, *options, str(source)], check=True)
    return target


def run(installed: Path, code: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(installed), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def test_it_takes_thirty_lines() -> None:
    assert len([line for line in block("python").splitlines() if line.strip()]) <= 30


def test_the_suite_judges_a_model(installed: Path, tiny_model: Path, tmp_path: Path) -> None:
    data = tmp_path / "capitals.jsonl"
    rows = [{"country": name, "cities": [name, "house"]} for name in ("red", "blue", "river")]
    data.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    code = "from alignflow.cli import main; main()"
    options = ("--workspace", tmp_path / "work", "--format", "json")
    done = run(
        installed, code, "evaluate", tiny_model, "--suite", "capitals", "--data", data, *options
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    items = [json.loads(line) for line in Path(report["items"]).read_text().splitlines()]
    assert [item["country"] for item in items] == ["red", "blue", "river"]
    shares = [item["is_right"] for item in items]
    assert report["scores"] == {"accuracy": pytest.approx(sum(shares) / 3)}


def test_the_recipe_is_read(installed: Path) -> None:
    code = (
        "import sys, yaml\n"
        "from alignflow.evaluation.config import EvaluationConfig\n"
        "print(EvaluationConfig.model_validate(yaml.safe_load(sys.argv[1])).score_names)"
    )
    done = run(installed, code, block("yaml"))
    assert done.returncode == 0, done.stderr
    for score in ("truth/mc0", "truth/mc2", "toxicity/accuracy_norm", "capitals/accuracy"):
        assert score in done.stdout


def test_an_unknown_suite_is_named_with_those_that_are_known(installed: Path) -> None:
    code = (
        "from alignflow.evaluation.suites import score_names\n"
        "try: score_names('capital')\n"
        "except ValueError as error: print(error)"
    )
    assert run(installed, code).stdout == (
        "there is no suite 'capital'; known are capitals, refusals, toxigen, toxigen_prompts, "
        "truthfulqa, truthfulqa_generation, and lm_eval:TASK.\n"
    )
