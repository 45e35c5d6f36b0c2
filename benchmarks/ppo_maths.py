"""Advantages and losses of PPO on random tensors: ours, and those that TRL's trainer computes.

Half of the responses end early. TRL puts the score of such a response on the position after its
last token and learns a value there too; here it is on the last token. So ours are computed on
responses that have that position as a token which the policy doesn't learn from. TRL whitens with
the unbiased variance, ours is the biased one; that factor is applied to ours.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from models import make_model
from torch import Tensor
from transformers import AutoTokenizer
from trl_maths import found_by_trl
from trl_settings import TRL_WITH_PPO

from alignflow.training.advantages import gae_advantages, row_sums, token_rewards, whitened
from alignflow.training.losses import kl_per_token, policy_loss, value_loss

_NUM_ROWS, _NUM_TOKENS, _VOCABULARY = 8, 12, 50
_TEMPERATURE, _KL_COEF, _DISCOUNT, _DECAY, _CLIP, _VALUE_CLIP = 0.7, 0.05, 0.98, 0.95, 0.2, 0.3


def ppo_differences(scratch: Path) -> dict[str, float]:
    """Return by name how far ours are from TRL's, at most."""
    make_model("tiny", scratch / "model")
    eos = AutoTokenizer.from_pretrained(scratch / "model").eos_token_id
    given, lengths_B = _given(eos)
    theirs = _by_trl(given, scratch)
    ours = _ours(given, lengths_B)
    is_token_BT = torch.arange(_NUM_TOKENS) < lengths_B[:, None]
    is_state_BT = torch.arange(_NUM_TOKENS) < _num_states(lengths_B)[:, None]
    theirs["advantages"] = theirs["advantages"][is_state_BT]
    theirs["whitened"] = theirs["whitened"][is_token_BT]
    return {name: float((ours[name] - theirs[name]).abs().max()) for name in sorted(ours)}


def _given(eos: int) -> tuple[dict[str, Tensor], Tensor]:
    """Return random tensors, and how many tokens each response has."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(_NUM_ROWS, *shape, generator=generator)

    lengths_B = torch.full((_NUM_ROWS,), _NUM_TOKENS)
    lengths_B[::2] = torch.tensor([2, 5, 9, 11])
    # Above the end-of-turn token, which is written where a response ends.
    responses_BT = torch.randint(
        eos + 20, _VOCABULARY, (_NUM_ROWS, _NUM_TOKENS), generator=generator
    )
    ends = lengths_B < _NUM_TOKENS
    responses_BT[ends, lengths_B[ends] - 1] = eos
    old_BTV = normal(_NUM_TOKENS, _VOCABULARY)
    values_BT = normal(_NUM_TOKENS)
    return {
        "responses": responses_BT,
        "old_logits": old_BTV,  # divided by the temperature
        "reference_logits": _TEMPERATURE * (old_BTV + 0.3 * normal(_NUM_TOKENS, _VOCABULARY)),
        "logits": _TEMPERATURE * (old_BTV + 0.3 * normal(_NUM_TOKENS, _VOCABULARY)),
        "old_values": values_BT,
        "values": values_BT + 0.4 * normal(_NUM_TOKENS),
        "scores": 2 * torch.randn(_NUM_ROWS, generator=generator),
    }, lengths_B


def _by_trl(given: dict[str, Tensor], folder: Path) -> dict[str, Tensor]:
    config = {
        "num_train_epochs": 1,
        "per_device_train_batch_size": _NUM_ROWS,
        "gradient_accumulation_steps": 1,
        "num_mini_batches": 1,
        "num_ppo_epochs": 1,
        "local_rollout_forward_batch_size": _NUM_ROWS,
        "num_sample_generations": 0,
        "response_length": _NUM_TOKENS,
        "stop_token": "eos",
        "temperature": _TEMPERATURE,
        "kl_coef": _KL_COEF,
        "gamma": _DISCOUNT,
        "lam": _DECAY,
        "cliprange": _CLIP,
        "cliprange_value": _VALUE_CLIP,
        "vf_coef": 1.0,
    }
    return found_by_trl(TRL_WITH_PPO, "trl_ppo_maths.py", given, folder / "model", config, folder)


@dataclass(frozen=True)
class _Flat:
    """N positions of all responses, one after another: their tokens, and the one after an end."""

    is_state_BT: Tensor
    is_trained_N: Tensor

    def __call__(self, values_BT: Tensor) -> Tensor:
        return values_BT[self.is_state_BT]


def _num_states(lengths_B: Tensor) -> Tensor:
    """Return the positions of each response that have a value in TRL."""
    return (lengths_B + 1).clamp(max=_NUM_TOKENS)


def _ours(given: dict[str, Tensor], lengths_B: Tensor) -> dict[str, Tensor]:
    states_B = _num_states(lengths_B)
    places_T = torch.arange(_NUM_TOKENS)
    is_token_BT, is_state_BT = places_T < lengths_B[:, None], places_T < states_B[:, None]
    flat = _Flat(is_state_BT, is_token_BT[is_state_BT])
    logits, values = given["logits"].clone(), given["values"].clone()
    logits.requires_grad_()
    values.requires_grad_()

    def logps(logits_BTV: Tensor) -> Tensor:
        picked = logits_BTV.log_softmax(-1).gather(-1, given["responses"][..., None])
        # Where no token was chosen there is no divergence either.
        return flat(picked[..., 0]).where(flat.is_trained_N, 0.0)

    old_N = logps(given["old_logits"])
    kl_N = kl_per_token(old_N, logps(given["reference_logits"] / _TEMPERATURE), "k1")
    rewards_N = token_rewards(kl_N, given["scores"], states_B, kl_coef=_KL_COEF)
    old_values_N = flat(given["old_values"])
    advantages_N = gae_advantages(
        rewards_N, old_values_N, states_B, discount=_DISCOUNT, decay=_DECAY
    )
    num_tokens = int(lengths_B.sum())
    bessel = ((num_tokens - 1) / num_tokens) ** 0.5
    white_N = bessel * whitened(advantages_N, flat.is_trained_N)
    of_policy = policy_loss(
        logps(logits / _TEMPERATURE), old_N, white_N, flat.is_trained_N, clip=_CLIP
    )
    of_values = value_loss(
        flat(values), old_values_N, advantages_N + old_values_N, clip=_VALUE_CLIP
    )
    loss = of_policy.total / of_policy.units + of_values.total / of_values.units
    loss.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert values.grad is not None
    return {
        "advantages": advantages_N,
        "whitened": white_N[flat.is_trained_N],
        "policy_loss": (of_policy.total / of_policy.units).detach(),
        "value_loss": (of_values.total / of_values.units).detach(),
        "clip_fraction": of_policy.metrics["clip_fraction"] / of_policy.units,
        "value_clip_fraction": of_values.metrics["clip_fraction"] / of_values.units,
        "kl_nats": row_sums(kl_N, states_B).mean(),
        "logits_gradient": logits.grad,
        "values_gradient": values.grad,
    }
