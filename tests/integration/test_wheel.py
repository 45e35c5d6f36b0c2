"""The wheel holds every package and data file, and imports from anywhere."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
LINKED = ("flows", "tasks", "training", "evaluation", "data_validation")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    source = tmp_path_factory.mktemp("source") / "alignflow"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(source)], check=True)
    subprocess.run([*build, "--wheel-dir", str(folder), str(source)], check=True)
    (built,) = folder.glob("alignflow-*.whl")
    return built


def test_wheel_holds_every_module_of_the_linked_folders(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    listed = subprocess.run(
        ["git", "ls-files", *LINKED], cwd=ROOT, capture_output=True, text=True, check=True
    )
    files = [name for name in listed.stdout.splitlines() if not name.endswith(".md")]
    assert files
    assert {f"alignflow/{name}" for name in files} <= names


def test_wheel_imports_from_another_folder(wheel: Path, tmp_path: Path) -> None:
    code = (
        "import alignflow, alignflow.flows.config, alignflow.cli, alignflow.reporting.page\n"
        "from alignflow.jobs.local import LocalLauncher\n"
        "print(alignflow.__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(wheel), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(wheel) in done.stdout
