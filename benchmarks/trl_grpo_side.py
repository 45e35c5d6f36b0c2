"""`python trl_grpo_side.py SETTINGS`: TRL's GRPO trainer, held up between runs.

As `trl_side.py`. Reference and reward model are held in the compute type.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from pacing import Pacer
from transformers import AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer
from trl_models import language_model, value_model

NAMES = {
    "loss": "loss",
    "kl": "kl",
    "reward": "score",
    "completions/mean_length": "response_tokens",
    "clip_ratio/region_mean": "clip_fraction",
}
"""Our names of the trainer's metrics."""


class PaceSteps(TrainerCallback):  # type: ignore[misc]
    """Reports what the trainer logs of a step, which is the last that it does of it."""

    def __init__(self, pacer: Pacer) -> None:
        self._pacer = pacer
        self._tokens = 0.0

    def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
        """Report the step."""
        if "num_tokens" not in logs:  # the summary of the whole run
            return
        tokens, self._tokens = logs["num_tokens"] - self._tokens, logs["num_tokens"]
        metrics = {ours: float(logs[theirs]) for theirs, ours in NAMES.items()}
        self._pacer.step_done({**metrics, "tokens": tokens})


def main() -> None:
    """Train over the prompts in the order of the file, to the end or until told to stop."""
    settings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    config = GRPOConfig(**settings["config"])
    folder = Path(settings["model"])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with Path(settings["rows"]).open(encoding="utf-8") as file:
        rows = Dataset.from_list([json.loads(line) for line in file])
    frozen = torch.bfloat16 if config.bf16 else torch.float32
    trainer = GRPOTrainer(
        model=language_model(folder, torch.float32),
        reward_funcs=value_model(folder, frozen),
        args=config,
        train_dataset=rows,
        processing_class=tokenizer,
        reward_processing_classes=AutoTokenizer.from_pretrained(folder),
        callbacks=[PaceSteps(Pacer(settings["steps_per_run"]))],
    )
    trainer.train()


if __name__ == "__main__":
    main()
