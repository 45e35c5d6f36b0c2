"""Which rows a stage makes of the records of its dataset, for training and for the token audit."""

from pathlib import Path
from typing import NamedTuple

from alignflow.data_validation.canonical import column_names
from alignflow.training.config import (
    AttributeModelConfig,
    DPOConfig,
    PPOConfig,
    RewardModelConfig,
    SFTConfig,
    SteerLMConfig,
)
from alignflow.training.data import (
    DEMONSTRATIONS,
    JUDGED_PREFERENCES,
    JUDGED_RESPONSES,
    PREFERENCES,
    PROMPTS,
    RATED,
    SCORED_PREFERENCES,
    STEERED,
    RecordKind,
)


class StageRows(NamedTuple):
    """How records become rows, and how long a row may be."""

    kind: RecordKind
    max_length: int


DatasetStageConfig = (
    SFTConfig | RewardModelConfig | DPOConfig | PPOConfig | AttributeModelConfig | SteerLMConfig
)
"""Stages whose rows are determined by their config and dataset; the prompts of SteerLM 2.0 hang on
what its model is asked for, too."""


def stage_rows(config: DatasetStageConfig, dataset: Path) -> StageRows:
    """Return how a stage makes rows of a dataset.

    Raises:
        DataError: The dataset can't be read.
    """
    match config:
        case PPOConfig():
            return StageRows(PROMPTS, config.max_prompt_tokens)
        case SFTConfig():
            kind = DEMONSTRATIONS
        case RewardModelConfig():
            kind = SCORED_PREFERENCES if config.margin_scale else PREFERENCES
        case DPOConfig():
            kind = _kind_of_dpo(config, dataset)
        case AttributeModelConfig():
            kind = RATED
        case SteerLMConfig():
            kind = STEERED
    return StageRows(kind, config.max_length)


def _kind_of_dpo(config: DPOConfig, dataset: Path) -> RecordKind:
    if config.loss == "kto":
        is_unpaired = "label" in column_names(dataset)
        return JUDGED_RESPONSES if is_unpaired else JUDGED_PREFERENCES
    return SCORED_PREFERENCES if config.loss.startswith("rpo") else PREFERENCES
