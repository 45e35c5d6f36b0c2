import pytest
from pydantic import ValidationError

from alignflow.training.config import DPOConfig, ParallelConfig, SFTConfig


@pytest.mark.parametrize(
    ("config", "field", "value"),
    [
        (SFTConfig, "early_stop_patience", 2),
        (SFTConfig, "restore_best", True),
        (DPOConfig, "max_accuracy_drop", 0.05),
    ],
)
def test_what_goes_by_validations_needs_them(
    config: type[SFTConfig | DPOConfig], field: str, value: object
) -> None:
    with pytest.raises(ValidationError, match=f"{field} needs validate_every_steps"):
        config.model_validate({field: value})
    config.model_validate({field: value, "validate_every_steps": 10})


def test_sequence_parallelism_needs_ranks_to_split_over() -> None:
    with pytest.raises(ValidationError, match="needs tensor_model_parallel_size above 1"):
        ParallelConfig(sequence_parallel=True)


def test_every_rank_of_a_layout_is_a_process() -> None:
    layout = ParallelConfig(
        tensor_model_parallel_size=2,
        pipeline_model_parallel_size=3,
        data_parallel_size=5,
        context_parallel_size=7,
        sequence_parallel=True,
    )
    assert layout.world_size == 2 * 3 * 5 * 7
