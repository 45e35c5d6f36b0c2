"""`python trl_rloo_maths.py FOLDER`: what TRL's RLOO trainer makes of given tensors.

Runs in the environment of the current TRL. Generation, the passes of the models and the reward are
replaced by the tensors of `given.safetensors`; the trainer's own code is everything between: KL,
rewards, baselines, ratios, the clipped loss and its gradient. What it computed goes to
`found.safetensors`.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer
from trl import RLOOConfig, RLOOTrainer
from trl_models import language_model


class GivenTrainer(RLOOTrainer):  # type: ignore[misc]
    """Takes the tensors for what it would sample and compute."""

    given: dict[str, Tensor]

    def _generate(self, prompts: list[Any]) -> tuple[list[list[int]], list[list[int]], list[str]]:
        lengths = self.given["lengths"].tolist()
        return [[5]] * len(prompts), [[6] * length for length in lengths], [""] * len(prompts)

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Tensor, _mask: Tensor, num_tokens: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor, None]:
        if model is self.ref_model:
            name = "reference_logps"
        else:
            name = "logps" if torch.is_grad_enabled() else "old_logps"
        logps = self.given[name][:, :num_tokens]
        return logps, torch.zeros_like(logps), None

    def _calculate_rewards(self, *_: Any) -> Tensor:
        return self.given["scores"][:, None]


def main() -> None:
    """Judge the responses and compute the loss once."""
    folder = Path(sys.argv[1])
    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    model = Path(settings["model"])
    given = load_file(folder / "given.safetensors")
    prompts = [{"prompt": "a question"} for _ in given["scores"]]
    trainer = GivenTrainer(
        model=language_model(model, torch.float32),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=RLOOConfig(**settings["config"]),
        train_dataset=Dataset.from_list(prompts),
        processing_class=AutoTokenizer.from_pretrained(model),
    )
    trainer.given = given
    trainer.model.train()
    judged = trainer._generate_and_score_completions(prompts)
    given["logps"].requires_grad_()
    loss = trainer._compute_loss(trainer.model, judged)
    loss.backward()
    gradient = given["logps"].grad
    assert gradient is not None
    found = {
        "advantages": judged["advantages"],
        "loss": loss.detach(),
        "clip_fraction": torch.tensor(trainer._metrics["train"]["clip_ratio/region_mean"][-1]),
        "logps_gradient": gradient,
    }
    save_file(
        {name: value.contiguous() for name, value in found.items()}, folder / "found.safetensors"
    )


if __name__ == "__main__":
    main()
