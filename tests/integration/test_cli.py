"""The command line as a user meets it: exit codes, one sentence for bad input, JSON that parses."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from alignflow.data_validation.config import DatasetConfig, SetExpectations
from alignflow.data_validation.ingest import ingest

pytestmark = pytest.mark.integration

LENIENT = SetExpectations(max_refused_share=0.9)

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "deployments/recipes/demo.yaml"


def alignflow(*arguments: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run the command line; whatever happens, it shows no traceback."""
    command = [sys.executable, "-c", "from alignflow.cli import main; main()"]
    done = subprocess.run(
        [*command, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, timeout=300
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def run_demo(tmp_path: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    settings = [f"workspace={tmp_path / 'work'}", *overrides]
    return alignflow("run", DEMO, *(word for item in settings for word in ("--set", item)))


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("dpo.learning_rat=1e-5", "unknown key; did you mean learning_rate"),
        ("data.preferences.sources=[nowhere.jsonl]", "nowhere.jsonl"),
        ("evaluation.suites.toxicity.data=nowhere.json", "nowhere.json"),
        ("store=README.md/store", "README.md/store"),
        (
            "gate.rules.x={score: truthfulness/mc3, at_least: 1}",
            "the nearest is 'truthfulness/mc2'",
        ),
    ],
)
def test_bad_input_is_refused_before_anything_starts(
    tmp_path: Path, override: str, sentence: str
) -> None:
    done = run_demo(tmp_path, override)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.glob("work/jobs/*"))


def test_text_file_is_no_model(tmp_path: Path) -> None:
    done = run_demo(tmp_path, "model.source=README.md")
    assert done.returncode == 2
    assert "README.md is no model" in done.stderr


def test_recipe_that_is_not_there(tmp_path: Path) -> None:
    done = alignflow("run", tmp_path / "no.yaml")
    assert done.returncode == 2
    assert "no.yaml: no such file" in done.stderr


def test_recipe_that_is_not_yaml(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("name: [unclosed")
    done = alignflow("config", "show", path)
    assert done.returncode == 2
    assert "bad.yaml:1" in done.stderr


def test_config_show_prints_what_it_reads(tmp_path: Path) -> None:
    shown = alignflow("config", "show", DEMO, "--set", "dpo.beta=0.5")
    assert shown.returncode == 0
    path = tmp_path / "resolved.yaml"
    path.write_text(shown.stdout)
    assert alignflow("config", "show", path).stdout == shown.stdout
    assert "beta: 0.5" in shown.stdout


def test_config_schema_describes_every_key() -> None:
    schema = json.loads(alignflow("config", "schema").stdout)
    assert schema["additionalProperties"] is False
    assert "description" in schema["properties"]["store"]


def test_data_check_prints_one_object(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    good = {"prompt": "Why is the sky blue?", "chosen": "It scatters light.", "rejected": "Paint."}
    same = {**good, "prompt": "And the sea?", "rejected": good["chosen"]}
    path.write_text(f"{json.dumps(good)}\n{json.dumps(same)}\nnot json\n")
    done = alignflow("data", "check", path, "--kind", "preference", "--format", "json")
    assert done.returncode == 0
    report = json.loads(done.stdout)
    assert report["decision"] == "partial"
    assert report["reason"] is None
    assert report["counts"] == {"accept": 1, "reject": 2, "skip": 0}
    assert [(row["line"], row["reason"]) for row in report["rows"]] == [
        (2, "identical_responses"),
        (3, "invalid_json"),
    ]


def test_data_requeue_tells_what_is_still_refused(tmp_path: Path) -> None:
    row = {"prompt": "Who?", "response": " "}
    source = tmp_path / "in.jsonl"
    source.write_text(json.dumps(row) + "\n" + json.dumps({**row, "response": "I."}) + "\n")
    ingest(DatasetConfig(sources=[str(source)], expectations=LENIENT), "sft", tmp_path / "set")
    quarantine = tmp_path / "mended.jsonl"
    text = (tmp_path / "set/quarantine.jsonl").read_text()
    output = tmp_path / "out.jsonl"
    for answer, code in (("\\u0000", 2), ("Nobody.", 0)):
        quarantine.write_text(text.replace('"response":" "', f'"response":"{answer}"'))
        done = alignflow("data", "requeue", quarantine, "--kind", "sft", "--to", output)
        assert done.returncode == code, done.stderr
    assert done.stdout.startswith(f"1 rows added to {output}, 0 there already, 0 not changed")
    assert json.loads(output.read_text())["response"] == "Nobody."


def test_data_check_of_an_empty_file_exits_with_2(tmp_path: Path) -> None:
    path = tmp_path / "empty.jsonl"
    path.touch()
    done = alignflow("data", "check", path, "--kind", "sft", "--format", "json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["reason"] == "empty_file"


@pytest.fixture(scope="module")
def empty_registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace whose MLflow database the first command makes: that takes seconds."""
    return tmp_path_factory.mktemp("registry") / "new"


def test_lineage_of_an_unknown_version_is_bad_input(empty_registry: Path) -> None:
    done = alignflow("lineage", "models:/nobody@candidate", "--workspace", empty_registry)
    assert done.returncode == 2
    assert "models:/nobody@candidate" in done.stderr


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (("promote", "nobody"), "nobody: the registry holds no model of this name."),
        (("rollback", "nobody"), "nobody: the registry holds no model of this name."),
        (("approve", "nobody-1", "--note", "fine"), "no run nobody-1 has asked for approval"),
        (("promote", "nobody", "--force"), "--force goes with --note"),
        (("promote", "nobody", "--by", ""), "a name of 1 to 100 characters"),
    ],
)
def test_decision_on_what_is_not_there_is_bad_input(
    empty_registry: Path, command: tuple[str, ...], sentence: str
) -> None:
    done = alignflow(*command, "--workspace", empty_registry)
    assert done.returncode == 2, done.stderr
    assert sentence in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_report_without_a_run_is_bad_input(tmp_path: Path) -> None:
    done = alignflow("report", "--workspace", tmp_path)
    assert done.returncode == 2
    assert "holds no finished run" in done.stderr


def test_doctor_finds_what_is_installed() -> None:
    done = alignflow("doctor", "--format", "json")
    assert done.returncode == 0, done.stdout
    found = {item["what"]: item["ok"] for item in json.loads(done.stdout)}
    assert found["megatron-core"]


def test_help_waits_for_no_heavy_import() -> None:
    code = (
        "import sys\n"
        "import alignflow.cli\n"
        "heavy = {'torch', 'prefect', 'mlflow', 'pydantic', 'yaml', 'rich', 'polars'}\n"
        "print(sorted(heavy & {name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
