"""A model is judged alike as a training checkpoint and as the Hugging Face folder made of it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alignflow.data_validation.canonical import SCHEMAS
from alignflow.jobs.local import LocalLauncher
from alignflow.jobs.run_folder import RunFolder
from alignflow.jobs.spec import JobSpec
from alignflow.jobs.wait import cancel_on_exit, wait_for

pytestmark = pytest.mark.integration

QUESTIONS = Path(__file__).parents[2] / "examples" / "truthfulness.csv"


@pytest.fixture
def trained(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """Five steps of SFT by two tensor-parallel processes, with a checkpoint of the fourth."""
    monkeypatch.setenv("ALIGNFLOW_SLOTS_DIR", str(tmp_path / "slots"))
    dataset = tmp_path / "dataset"
    rows = [
        {
            "id": f"row-{number}",
            "messages": [
                {"role": "user", "content": f"which house is number {number}?"},
                {"role": "assistant", "content": "the tall one by the river"},
            ],
        }
        for number in range(16)
    ]
    for split in ("train", "held_out"):
        (dataset / split).mkdir(parents=True)
        table = pa.Table.from_pylist(rows, schema=SCHEMAS["sft"])
        pq.write_table(table, dataset / split / "part-00000.parquet")
    (dataset / "card.json").write_text("{}")
    stage = {
        "stage": "sft",
        "precision": "fp32",
        "learning_rate": 1e-2,
        "global_batch_size": 4,
        "microbatch_tokens": 128,
        "num_epochs": 2,
        "max_steps": 5,
        "checkpoint_every_steps": 4,
        "parallel": {"tensor_model_parallel_size": 2},
    }
    config = {"stage": stage, "model": str(tiny_model), "dataset": str(dataset)}
    spec = JobSpec(name="sft", module="alignflow.training", config=config, processes_per_node=2)
    folder = RunFolder(tmp_path / "sft")
    job = LocalLauncher().submit(spec, folder)
    with cancel_on_exit(job):
        wait_for(job, folder)
    return folder


def alignflow(command: str, *arguments: str | Path) -> str:
    """Run the command line; return what it prints."""
    code = "from alignflow.cli import main; main()"
    words = [sys.executable, "-c", code, command, *map(str, arguments)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def evaluate(model: Path, workspace: Path) -> dict[str, Any]:
    """Return scores and items as the command line gives them."""
    options = ["--suite", "truthfulqa", "--data", str(QUESTIONS), "--limit", "6"]
    where = ["--workspace", str(workspace), "--format", "json"]
    report: dict[str, Any] = json.loads(alignflow("evaluate", model, *options, *where))
    report["items"] = Path(report["items"]).read_text(encoding="utf-8")
    return report


@pytest.mark.slow
def test_checkpoint_and_folder_have_the_same_scores(trained: RunFolder, tmp_path: Path) -> None:
    (checkpoint,) = trained.checkpoints.glob("step-*")
    of_checkpoint = evaluate(checkpoint, tmp_path / "work")
    alignflow("export", checkpoint, "--to", tmp_path / "model", "--workspace", tmp_path / "other")
    of_folder = evaluate(tmp_path / "model", tmp_path / "work")
    assert of_checkpoint["num_items"] == of_folder["num_items"] == 6
    assert of_checkpoint["scores"] == of_folder["scores"]
    assert of_checkpoint["items"] == of_folder["items"]
    # A step later it is another model.
    assert evaluate(trained.output, tmp_path / "work")["items"] != of_folder["items"]
