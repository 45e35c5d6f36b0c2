"""What the package's modules may load."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("canonical", ("pandera", "polars", "pandas", "great_expectations", "torch", "prefect")),
        ("card", ("pandera", "pandas", "great_expectations", "torch", "prefect", "mlflow")),
        ("workers", ("pandera", "pandas", "great_expectations", "torch", "prefect", "mlflow")),
        (
            "ingest",
            ("great_expectations", "datasets", "torch", "transformers", "prefect", "mlflow"),
        ),
    ],
)
def test_a_module_loads_little(module: str, absent: tuple[str, ...]) -> None:
    code = (
        f"import sys, alignflow.data_validation.{module}\n"
        f"print(*[name for name in {absent!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
