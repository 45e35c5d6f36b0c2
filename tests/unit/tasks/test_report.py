"""What the report takes from the artifacts of a run."""

from pathlib import Path

import pytest

from alignflow.tasks.pipeline import Pipeline, Stage, StageOutput, run_stage
from alignflow.tasks.report import paired_stderr, training_rows
from alignflow.tasks.tracking import StageRun


def test_training_stages_tell_what_they_cut_and_refused(pipeline: Pipeline) -> None:
    refused = [{"id": "row-17", "reason": "empty_mask"}]
    judged = {"num_items": {}, "num_truncated": 1, "refused_rows": []}
    trained = {"num_rows": 20, "num_truncated": 3, "num_refused": 1, "refused_rows": refused}
    for kind, details in (("sft", trained), ("evaluation", judged)):

        def compute(
            _run: StageRun, scratch: Path, details: dict[str, object] = details
        ) -> StageOutput:
            (scratch / "file").write_text(str(details))
            return StageOutput(scratch, details=details)

        run_stage(pipeline, Stage(name=kind, kind=kind, config={}, revision=1), compute)
    (rows,) = training_rows(pipeline)
    assert (rows.stage, rows.num_rows, rows.num_truncated, rows.num_refused) == ("sft", 20, 3, 1)
    assert [(row.id, row.reason) for row in rows.refused] == [("row-17", "empty_mask")]


def test_error_of_a_difference_is_that_of_paired_resamples() -> None:
    # Differences 1, 1, 4: their standard deviation is sqrt(3). What has no value doesn't count.
    before = {"toxicity/macro_f1": [1.0, 2.0, None, 3.0]}
    after = {"toxicity/macro_f1": [2.0, 3.0, 9.0, 7.0]}
    assert paired_stderr(before, after, "toxicity/macro_f1") == pytest.approx(3**0.5)
    assert paired_stderr(before, {}, "toxicity/macro_f1") is None
