"""`python trl_side.py SETTINGS`: TRL's trainer for rows or pairs, held up between runs.

Runs in the environment of `trl_environment`, where alignflow is not imported. The settings are the
JSON object that `sides.trl_side` writes.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from pacing import Pacer
from transformers import AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer
from trl_models import language_model, value_model

STAGES = {
    "sft": (SFTTrainer, SFTConfig),
    "reward_model": (RewardTrainer, RewardConfig),
    "dpo": (DPOTrainer, DPOConfig),
}


class PaceSteps(TrainerCallback):  # type: ignore[misc]
    """Reports the loss of each optimizer step, whatever number of parts it was made of."""

    def __init__(self, pacer: Pacer) -> None:
        self._pacer = pacer
        self.loss = 0.0

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Report the step."""
        loss, self.loss = self.loss, 0.0
        self._pacer.step_done({"loss": loss})


def main() -> None:
    """Train over the rows in the order of the file, to the end or until told to stop."""
    settings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    trainer_class, config_class = STAGES[settings["stage"]]
    paced = PaceSteps(Pacer(settings["steps_per_run"]))

    class Trainer(trainer_class):  # type: ignore[misc, valid-type]
        """Hands on the loss of each part, already divided by the parts of a step."""

        def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            loss: torch.Tensor = super().training_step(*args, **kwargs)
            paced.loss += float(loss)
            return loss

    load = value_model if settings["stage"] == "reward_model" else language_model
    with Path(settings["rows"]).open(encoding="utf-8") as file:
        rows = Dataset.from_list([json.loads(line) for line in file])
    trainer = Trainer(
        model=load(Path(settings["model"]), torch.float32),
        args=config_class(**settings["config"]),
        train_dataset=rows,
        processing_class=AutoTokenizer.from_pretrained(settings["model"]),
        callbacks=[paced],
    )
    if len(trainer.train_dataset) != len(rows):
        raise SystemExit(f"TRL dropped rows: {len(trainer.train_dataset)} of {len(rows)} are left.")
    trainer.train()


if __name__ == "__main__":
    main()
