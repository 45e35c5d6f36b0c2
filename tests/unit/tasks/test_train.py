"""What is refused before a training job is started."""

import json
from pathlib import Path

import pytest

from alignflow.artifacts import Artifact
from alignflow.errors import ConfigError
from alignflow.fingerprints import folder_fingerprints
from alignflow.tasks.pipeline import Pipeline, Stage, StageOutput, run_stage
from alignflow.tasks.tracking import StageRun
from alignflow.tasks.train import train_stage
from alignflow.training.config import PPOConfig


def publish(pipeline: Pipeline, kind: str, vocabulary: dict[str, int] | None) -> Artifact:
    """Publish a folder with a tokenizer, or one without."""

    def write(_run: StageRun, scratch: Path) -> StageOutput:
        if vocabulary is None:
            (scratch / "card.json").write_text("{}")
            return StageOutput(scratch)
        (scratch / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}}))
        prints = folder_fingerprints(scratch)
        return StageOutput(scratch, tokenizer=prints.tokenizer, chat_template=prints.chat_template)

    return run_stage(pipeline, Stage(name=kind, kind=kind, config={}, revision=1), write)


def test_a_reward_model_with_another_tokenizer_starts_no_job(pipeline: Pipeline) -> None:
    sft = publish(pipeline, "sft", {"yes": 0, "no": 1})
    reward = publish(pipeline, "reward_model", {"no": 0, "yes": 1})
    dataset = publish(pipeline, "dataset", None)
    with pytest.raises(ConfigError, match="sft and reward_model differ in their tokenizer"):
        train_stage.fn(pipeline, "ppo", PPOConfig(), sft, dataset, reward_model=reward)
    assert not (pipeline.workspace / "jobs").exists()
