"""What is kept of a job's metrics."""

from alignflow.tasks.jobs import thin_out


def test_curves_keep_every_validation_and_the_ends_of_training() -> None:
    training = [{"step": step, "phase": "train", "sft/loss": 1.0} for step in range(1, 101)]
    validation = [{"step": step, "phase": "validate", "sft/held_out_loss": 2.0} for step in (0, 55)]
    loading = [{"step": 0, "phase": "load", "done": 1}, {"phase": "evaluate", "sft/loss": 1.0}]
    kept = thin_out([*loading, *validation, *training], "sft", 10)
    assert [line for line in kept if line["phase"] == "validate"] == validation
    steps = [line["step"] for line in kept if line["phase"] == "train"]
    assert len(kept) == 12
    assert (steps[0], steps[-1]) == (1, 100)
