"""Advantages and loss of RLOO on random tensors: ours, and those that TRL's trainer computes.

The whole response is one action; responses have lengths of their own, and some ratios are clipped.
"""

from pathlib import Path

import numpy as np
import torch
from models import make_model
from torch import Tensor
from trl_maths import found_by_trl
from trl_settings import TRL

from alignflow.training.actor_critic import policy_objective
from alignflow.training.config import PPOConfig, RLOOConfig
from alignflow.training.experience import TokenModels, judged, pack_for_actor
from alignflow.training.rollout import Response, Rollout

_NUM_PROMPTS, _NUM_SAMPLES, _NUM_TOKENS = 3, 4, 12
_NUM_ROWS = _NUM_PROMPTS * _NUM_SAMPLES
_CONFIG = PPOConfig(
    estimator=RLOOConfig(action="response"),
    samples_per_prompt=_NUM_SAMPLES,
    missing_end_reward=None,
    kl_coef=0.05,
    ratio_clip=0.2,
)


def rloo_differences(scratch: Path) -> dict[str, float]:
    """Return by name how far ours are from TRL's, at most."""
    make_model("tiny", scratch / "model")
    given = _given()
    theirs = found_by_trl(
        TRL,
        "trl_rloo_maths.py",
        given,
        scratch / "model",
        {
            "per_device_train_batch_size": _NUM_ROWS,
            "num_generations": _NUM_SAMPLES,
            "max_completion_length": _NUM_TOKENS,
            "beta": _CONFIG.kl_coef,
            "epsilon": _CONFIG.ratio_clip,
        },
        scratch,
    )
    ours = _ours(given)
    return {name: float((ours[name] - theirs[name]).abs().max()) for name in sorted(ours)}


def _given() -> dict[str, Tensor]:
    """Return random log-probabilities and scores, and how many tokens each response has."""
    generator = torch.Generator().manual_seed(0)
    shape = (_NUM_ROWS, _NUM_TOKENS)
    old_BT = -3 * torch.rand(shape, generator=generator)
    return {
        "lengths": torch.randint(1, _NUM_TOKENS + 1, (_NUM_ROWS,), generator=generator),
        "old_logps": old_BT,
        "reference_logps": old_BT + 0.3 * torch.randn(shape, generator=generator),
        "logps": old_BT + 0.1 * torch.randn(shape, generator=generator),
        "scores": 2 * torch.randn(_NUM_ROWS, generator=generator),
    }


def _ours(given: dict[str, Tensor]) -> dict[str, Tensor]:
    lengths_B = given["lengths"]
    is_token_BT = torch.arange(_NUM_TOKENS) < lengths_B[:, None]
    old_N, reference_N = (given[f"{name}_logps"][is_token_BT] for name in ("old", "reference"))
    responses = [
        Response([1] * length, [0.0] * length, has_ended=True, score=score)
        for length, score in zip(lengths_B.tolist(), given["scores"].tolist(), strict=True)
    ]
    rollout = Rollout.of(
        [np.array([0], dtype=np.int32)] * _NUM_PROMPTS,
        [responses[at : at + _NUM_SAMPLES] for at in range(0, _NUM_ROWS, _NUM_SAMPLES)],
    )
    experience = judged(
        rollout,
        TokenModels(old_N.double(), reference_N.double(), values_N=None),
        _CONFIG,
        kl_coef=_CONFIG.kl_coef,
    )
    batch = pack_for_actor(rollout.rows, np.arange(_NUM_PROMPTS), experience)
    logps_BT = given["logps"].clone().requires_grad_()
    loss = policy_objective(logps_BT[is_token_BT], batch, config=_CONFIG, kl_coef=0.0)
    (loss.total / loss.units).backward()  # type: ignore[no-untyped-call]
    assert logps_BT.grad is not None
    return {
        "advantages": experience.advantages_N[lengths_B.cumsum(0) - 1],
        "loss": (loss.total / loss.units).detach(),
        "clip_fraction": loss.metrics["clip_fraction"] / loss.units,
        "logps_gradient": logps_BT.grad,
    }
