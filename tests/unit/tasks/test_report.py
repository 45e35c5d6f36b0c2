"""What the report takes from the artifacts of a run."""

from pathlib import Path

import pytest

from alignflow.evaluation.gate import Measures
from alignflow.evaluation.measures import Items, Measure
from alignflow.reporting.model import Difference, ModelRole
from alignflow.tasks.pipeline import Pipeline, Stage, StageOutput, run_stage
from alignflow.tasks.report import differences_of, training_rows
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


def test_differences_are_formed_item_by_item_against_every_other_model() -> None:
    items = Items.of(range(40))
    aligned = {"s": Measure.mean(items, [1.0] * 40), "kl": Measure.mean(items, [0.1] * 40)}
    models: dict[ModelRole, Measures] = {
        "base": {"s": Measure.mean(items, [0.0] * 20 + [1.0] * 20)},
        "sft": {"s": Measure.mean(Items.of([0]), [0.0]), "kl": Measure.mean(items, [0.3] * 40)},
        "aligned": aligned,
    }
    found = differences_of("s", aligned, models)
    assert list(found) == ["base", "sft"]
    assert (found["base"].value, found["base"].num_items) == (0.5, 40)
    # 0.5 ± 1.96 * sqrt(0.25 / 40) = 0.5 ± 0.155.
    assert found["base"].interval == pytest.approx((0.345, 0.655), abs=0.03)
    assert found["sft"] == Difference(value=1.0, interval=None, num_items=1)
    assert list(differences_of("kl", aligned, models)) == ["sft"]
