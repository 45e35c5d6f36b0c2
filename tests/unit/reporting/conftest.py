from pathlib import Path

import pytest

from alignflow.reporting.model import ReportData

SAMPLE = Path(__file__).parents[2] / "assets" / "report.json"


@pytest.fixture(scope="session")
def report() -> ReportData:
    """A whole report of a demo run, with hostile rows and answers among the others."""
    return ReportData.model_validate_json(SAMPLE.read_text(encoding="utf-8"))
