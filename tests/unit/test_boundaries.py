"""Imports go one way; a process that only submits jobs loads neither torch nor megatron."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Package -> modules it must not import, anywhere in it.
FORBIDDEN = {
    "training": {"prefect", "mlflow", "alignflow.flows", "alignflow.tasks"},
    "evaluation": {"prefect", "mlflow", "alignflow.flows", "alignflow.tasks"},
    "data_validation": {"prefect", "mlflow", "torch", "transformers", "megatron"},
    "tasks": {"alignflow.flows", "torch", "megatron"},
    "flows": {"torch", "megatron", "mlflow"},
    "src/alignflow/artifacts": {"prefect", "mlflow", "torch", "megatron", "alignflow.tasks"},
    "src/alignflow/jobs": {"prefect", "mlflow", "megatron", "alignflow.tasks"},
}


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.mark.parametrize("package", FORBIDDEN)
def test_package_keeps_its_boundary(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        for module in imports(path):
            for name in FORBIDDEN[package]:
                assert not f"{module}.".startswith(f"{name}."), f"{path}: {module}"


@pytest.mark.parametrize(
    ("module", "only_in"),
    [("megatron", "training/megatron"), ("mlflow", "tasks/tracking")],
)
def test_library_is_met_in_one_place(module: str, only_in: str) -> None:
    tops = ["flows", "tasks", "training", "evaluation", "data_validation", "src/alignflow"]
    for top in tops:
        for path in sorted((ROOT / top).rglob("*.py")):
            if str(path.relative_to(ROOT)).startswith(only_in) or path.is_relative_to(
                ROOT / "src" / "alignflow" / only_in
            ):
                continue
            met = [name for name in imports(path) if name.partition(".")[0] == module]
            assert not met, f"{path} imports {met}"


def test_losses_import_torch_alone() -> None:
    allowed = {"torch", "dataclasses", "collections", "typing", "math", "alignflow"}
    for path in sorted((ROOT / "training/losses").glob("*.py")):
        for module in imports(path):
            assert module.partition(".")[0] in allowed, f"{path}: {module}"


def test_importing_the_flow_loads_neither_torch_nor_megatron() -> None:
    code = (
        "import sys, alignflow.flows.alignment\n"
        "heavy = {'torch', 'megatron', 'transformers', 'great_expectations'}\n"
        "print(sorted(heavy & {name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
