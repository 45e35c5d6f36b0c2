"""`python trl_ppo_maths.py FOLDER`: what TRL's PPO trainer makes of given tensors.

Runs in the environment of TRL 1.12. The arithmetic of that trainer lies inside its loop; so the
loop itself runs here, one rollout and one update, while generation and the passes of the models are
replaced by the tensors of `given.safetensors`. What it computed goes to `found.safetensors`. Its
own code is everything between: KL, rewards, advantages, whitening, both losses, their gradients.
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer, TrainerCallback
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer
from trl_models import language_model, value_model

NAMES = {
    "loss/policy_avg": "policy_loss",
    "loss/value_avg": "value_loss",
    "policy/clipfrac_avg": "clip_fraction",
    "val/clipfrac_avg": "value_clip_fraction",
    "objective/kl": "kl_nats",
}
"""Our names of the trainer's metrics."""


class Script:
    """Answers for the models. A prompt is one token, which says which row of the tensors it is."""

    def __init__(self, given: dict[str, Tensor], reference: Any) -> None:
        self.given = given
        self.reference = reference
        self.logits = given["logits"].requires_grad_()
        self.values = given["values"].requires_grad_()
        self.found: dict[str, Tensor] = {}

    def generate(self, _model: Any, queries: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        """Stand for `batch_generation`."""
        rows = queries[:, 0]
        responses = self.given["responses"][rows]
        return torch.cat([queries, responses], dim=1), self.given["old_logits"][rows]

    def forward(self, model: Any, query_responses: Tensor, _pad: int) -> Any:
        """Stand for `forward`, of the reference or of policy and critic."""
        rows = query_responses[:, 0]
        if model is self.reference:
            return SimpleNamespace(logits=_with_last(self.given["reference_logits"][rows]))
        output = SimpleNamespace(logits=_with_last(self.logits[rows]))
        return output, _with_last(self.values[rows])[..., None]

    def reward(self, model: Any, query_responses: Tensor, *_: Any) -> tuple[Tensor, Tensor, None]:
        """Stand for `get_reward`, of the critic at every token or of the reward model."""
        rows = query_responses[:, 0]
        values = _with_last(self.given["old_values"][rows])[..., None]
        return values, self.given["scores"][rows], None

    def whiten(self, values: Tensor, mask: Tensor, **kwargs: Any) -> Tensor:
        """Stand before `masked_whiten`: note what comes in, and out."""
        whitened: Tensor = _masked_whiten(values, mask, **kwargs)
        self.found["advantages"], self.found["whitened"] = values, whitened
        return whitened


_masked_whiten = ppo_trainer.masked_whiten


def _with_last(values: Tensor) -> Tensor:
    """Add a position at the end, which the trainer cuts off: nothing is predicted there."""
    return torch.cat([values, values[:, :1]], dim=1)


class KeepMetrics(TrainerCallback):  # type: ignore[misc]
    """Keeps what the trainer logs."""

    def __init__(self, found: dict[str, Tensor]) -> None:
        self._found = found

    def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
        """Keep the metrics by our names."""
        self._found.update({ours: torch.tensor(logs[theirs]) for theirs, ours in NAMES.items()})


def main() -> None:
    """Run the loop once."""
    folder = Path(sys.argv[1])
    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    model = Path(settings["model"])
    reference = language_model(model, torch.float32)
    script = Script(load_file(folder / "given.safetensors"), reference)
    rows = Dataset.from_dict({"input_ids": [[row] for row in range(len(script.given["scores"]))]})
    trainer = PPOTrainer(
        args=PPOConfig(**settings["config"]),
        processing_class=AutoTokenizer.from_pretrained(model),
        model=language_model(model, torch.float32),
        ref_model=reference,
        reward_model=value_model(model, torch.float32),
        value_model=value_model(model, torch.float32),
        train_dataset=rows,
        eval_dataset=rows,
        callbacks=[KeepMetrics(script.found)],
    )
    trainer.dataloader = [{"input_ids": torch.tensor(rows["input_ids"])}]
    ppo_trainer.batch_generation = script.generate
    ppo_trainer.forward = script.forward
    ppo_trainer.get_reward = script.reward
    ppo_trainer.masked_whiten = script.whiten
    trainer.train()
    assert script.logits.grad is not None
    assert script.values.grad is not None
    found = {
        **script.found,
        "logits_gradient": script.logits.grad,
        "values_gradient": script.values.grad,
    }
    save_file(
        {name: value.contiguous() for name, value in found.items()}, folder / "found.safetensors"
    )


if __name__ == "__main__":
    main()
