"""`alignflow judge`: a judge is trained once, shown by its digest, and refused in one sentence."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from alignflow.cli.app import app

TOXICITY = str(Path(__file__).parents[2] / "examples/toxicity.json")


def judge(workspace: Path, *arguments: str) -> Result:
    return CliRunner().invoke(
        app, ["judge", *arguments, "--workspace", str(workspace)], catch_exceptions=False
    )


def test_a_judge_is_trained_once_and_shown(tmp_path: Path) -> None:
    trained = judge(tmp_path, "train", "toxicity", "--data", TOXICITY, "--licence", "Apache-2.0")
    assert trained.exit_code == 0
    digest = trained.stdout.split()[-1]
    assert (
        judge(tmp_path, "train", "toxicity", "--data", TOXICITY, "--licence", "Apache-2.0").stdout
        == trained.stdout
    )
    assert len(list((tmp_path / "artifacts/artifacts").iterdir())) == 1
    page = tmp_path / "card.html"
    shown = judge(tmp_path, "show", digest, "--format", "json", "--page", str(page))
    card = json.loads(shown.stdout)
    assert (card["task"], card["num_examples"], card["licence"]) == ("toxicity", 64, "Apache-2.0")
    assert "<h1" in page.read_text()
    folder = tmp_path / "artifacts" / "artifacts" / digest
    assert json.loads(judge(tmp_path, "show", str(folder), "--format", "json").stdout) == card


def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ALIGNFLOW_DATA", raising=False)
    refused = judge(tmp_path, "train", "truth")
    assert refused.exit_code == 2
    assert "--data is missing and ALIGNFLOW_DATA is not set" in refused.stderr
    assert judge(tmp_path, "show", str(tmp_path)).exit_code == 2
    wrong = judge(tmp_path, "train", "toxicity", "--data", TOXICITY, "--references", TOXICITY)
    assert wrong.exit_code == 2
    assert "compares with no references" in wrong.stderr
