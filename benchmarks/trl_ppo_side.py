"""`python trl_ppo_side.py SETTINGS`: TRL's PPO trainer, held up between runs.

As `trl_side.py`, for the last version that has this trainer. Reference and reward model are held in
the compute type. The trainer generates outside of the autocast that it trains in, with weights and
products in float32; here generation has an autocast of its own, which casts the weights once a
rollout and is the faster of the two.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from pacing import Pacer
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, DataCollatorWithPadding, TrainerCallback
from trl.experimental.ppo import PPOConfig, PPOTrainer
from trl_models import language_model, value_model

NAMES = {
    "objective/kl": "kl_nats",
    "objective/scores": "score",
    "loss/policy_avg": "loss",
    "loss/value_avg": "value_loss",
    "val/ratio": "ratio",
}
"""Our names of the trainer's metrics."""


class PaceRollouts(TrainerCallback):  # type: ignore[misc]
    """Reports what the trainer logs of a rollout and its updates, once they are done."""

    def __init__(self, pacer: Pacer, tokens: list[int]) -> None:
        self._pacer = pacer
        self._tokens = tokens
        self._metrics: dict[str, float] = {}

    def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
        """Keep the metrics until the step ends."""
        self._metrics = {ours: logs[theirs] for theirs, ours in NAMES.items()}

    def on_step_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        """Report the step."""
        size = args.local_batch_size
        first = (state.global_step - 1) * size
        tokens = sum(self._tokens[first : first + size]) + size * args.response_length
        self._pacer.step_done({**self._metrics, "tokens": tokens})


def main() -> None:
    """Train over the prompts in the order of the file, to the end or until told to stop."""
    settings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    pacer = Pacer(settings["steps_per_run"])
    config = PPOConfig(**settings["config"])
    # The trainer makes its accelerator without a word about precision; this is how it is told.
    os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16" if config.bf16 else "no"
    frozen = torch.bfloat16 if config.bf16 else torch.float32
    folder = Path(settings["model"])
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    prompts = [
        tokenizer.apply_chat_template(
            json.loads(line)["prompt"], add_generation_prompt=True, return_dict=False
        )
        for line in Path(settings["rows"]).read_text(encoding="utf-8").splitlines()
    ]
    size = config.per_device_train_batch_size * config.gradient_accumulation_steps
    # With the end of its data in sight, accelerate makes an update of every part of a rollout. So
    # there is another rollout, which the comparison never comes to.
    rows = Dataset.from_dict({"input_ids": prompts + prompts[:size]})
    trainer = PPOTrainer(
        args=config,
        processing_class=tokenizer,
        model=language_model(folder, torch.float32),
        ref_model=language_model(folder, frozen),
        reward_model=value_model(folder, frozen),
        value_model=value_model(folder, torch.float32),
        train_dataset=rows,
        eval_dataset=rows,
        callbacks=[PaceRollouts(pacer, [len(prompt) for prompt in prompts])],
    )
    # The trainer's own shuffles, and nothing turns that off.
    trainer.dataloader = trainer.accelerator.prepare(
        DataLoader(
            rows,
            batch_size=size,
            collate_fn=DataCollatorWithPadding(tokenizer),
            drop_last=True,
        )
    )
    generate_in_autocast(trainer.policy_model, enabled=config.bf16)
    trainer.train()


def generate_in_autocast(model: Any, *, enabled: bool) -> None:
    """Let a model generate in bf16, its weights cast once."""
    generate = model.generate

    def generated(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            return generate(*args, **kwargs)

    model.generate = generated


if __name__ == "__main__":
    main()
