import pytest
from pydantic import ValidationError

from alignflow.training.config import DPOConfig, SFTConfig


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
