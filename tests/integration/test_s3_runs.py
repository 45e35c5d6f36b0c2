"""The command line on S3: sources and store, what it says of errors, and that no secret shows."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from alignflow import s3
from alignflow.sources import fetch_file

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
SECRET = "labadminsecret"


def alignflow(*arguments: str | Path, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
    """Run the command line; no secret is ever among what it prints, nor a traceback."""
    command = [sys.executable, "-c", "from alignflow.cli import main; main()"]
    done = subprocess.run(
        [*command, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    for secret in (SECRET, os.environ["AWS_SECRET_ACCESS_KEY"], os.environ["AWS_ACCESS_KEY_ID"]):
        assert secret not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done


def put(url: str, content: bytes) -> None:
    s3.write_bytes(s3.S3Path.parse(url), content)


def check(url: str, workspace: Path) -> subprocess.CompletedProcess[str]:
    return alignflow(
        *("data", "check", url, "--kind", "preference"),
        *("--format", "json", "--workspace", workspace),
    )


def test_data_check_of_an_object_is_that_of_the_file(s3_bucket: str, tmp_path: Path) -> None:
    file = EXAMPLES / "broken_preferences.jsonl"
    put(f"s3://{s3_bucket}/data/broken.jsonl", file.read_bytes())
    local = json.loads(check(str(file), tmp_path).stdout)
    done = check(f"s3://{s3_bucket}/data/broken.jsonl", tmp_path)
    assert done.returncode == 0
    assert json.loads(done.stdout) == {**local, "file": f"s3://{s3_bucket}/data/broken.jsonl"}


@pytest.mark.parametrize(
    ("bucket", "environment", "reason"),
    [
        (None, {"AWS_SECRET_ACCESS_KEY": "hunter2"}, "the secret key is wrong"),
        (None, {"AWS_ACCESS_KEY_ID": "nobody"}, "the server doesn't know the access key"),
        (None, {"AWS_SESSION_TOKEN": "hunter3"}, ""),
        ("no-such-bucket", {}, "there is no bucket no-such-bucket"),
        (None, {}, "there is no such object"),
    ],
)
def test_data_check_of_what_cannot_be_had_is_one_sentence(
    s3_bucket: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    bucket: str | None,
    environment: dict[str, str],
    reason: str,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    url = f"s3://{bucket or s3_bucket}/data/none.jsonl"
    done = check(url, tmp_path)
    assert done.returncode == 2
    assert f"alignflow: can't read {url}: {reason}" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not any(value in done.stderr for value in environment.values())


def run(settings: list[str]) -> subprocess.CompletedProcess[str]:
    recipe = ROOT / "deployments/recipes/demo.yaml"
    return alignflow("run", recipe, "--json", *settings, timeout_s=600)


@pytest.fixture
def settings(s3_bucket: str, tiny_model: Path, tmp_path: Path) -> list[str]:
    """The demo on a model of random weights, its data and its store on S3."""
    for file in EXAMPLES.iterdir():
        if file.is_file():
            put(f"s3://{s3_bucket}/data/{file.name}", file.read_bytes())
    data = f"s3://{s3_bucket}/data"
    values = [
        f"workspace={tmp_path / 'work'}",
        f"store=s3://{s3_bucket}/store",
        f"model.source={tiny_model}",
        f"data.demonstrations.sources=[{data}/demonstrations.jsonl]",
        f"data.preferences.sources=['{data}/*preferences.jsonl']",
        f"evaluation.suites.truthfulness.data={data}/truthfulness.csv",
        f"evaluation.suites.toxicity.data={data}/toxicity.json",
        *(f"{stage}.max_steps=1" for stage in ("sft", "reward_model", "dpo")),
        *(f"{stage}.max_length=512" for stage in ("sft", "reward_model", "dpo")),
        "evaluation.max_length=512",
        "evaluation.max_new_tokens=4",
        "gate.rules.learned_preference.at_least=0",
    ]
    return [word for value in values for word in ("--set", value)]


@pytest.mark.slow
def test_the_pipeline_runs_on_s3_and_keeps_no_secret(
    s3_bucket: str, settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    first = run(settings)
    assert first.returncode == 0
    outcome = json.loads(first.stdout)
    assert set(outcome["stages"].values()) == {"computed"}

    other_workspace = [*settings, "--set", f"workspace={tmp_path / 'other'}"]
    again = json.loads(run(other_workspace).stdout)
    assert set(again["stages"].values()) == {"reused"}

    refused = run([*settings, "--set", "data.preferences.expectations.max_refused_share=0"])
    assert refused.returncode == 2
    (kept,) = re.findall(rf"s3://{s3_bucket}/store/\S*quarantine\.jsonl", refused.stderr)
    rows = fetch_file(kept, tmp_path / "kept").path.read_text().splitlines()
    assert {"missing_key", "duplicate_row"} <= {json.loads(row)["reason"] for row in rows}

    store = s3.S3Path(s3_bucket, "store/")
    objects = {str(item.path): s3.read_bytes(item.path) or b"" for item in s3.list_objects(store)}
    assert any(url.endswith("/quarantine.jsonl") for url in objects)
    files = {str(path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert any(name.endswith("mlflow.db") for name in files)
    assert [name for name, content in (objects | files).items() if b"labadmin" in content] == []


def test_a_run_with_wrong_credentials_ends_before_it_starts(
    settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    done = run(settings)
    assert done.returncode == 2
    assert "can't read s3://" in done.stderr
    assert "/data/demonstrations.jsonl: the secret key is wrong" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "work").exists()
