"""What each stage compares: its config, its unit of work, and what both sides must agree about."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter
from sides import RunReport
from trl_settings import TrlOptions, step_units
from workload import Workload

from alignflow.training.config import PPOConfig, StageConfig

STAGES = ("sft", "rm", "dpo", "ppo", "grpo")

_RATIO_BOUND = 0.01
_KL_BOUND = 0.02
"""In nats a token: TRL compares log-probabilities of generation with those of a pass of the
reference in bf16, which round otherwise."""
_LOSS_BOUND = 0.02
"""How far the losses of a step may be apart in nats a token (SFT) or a pair: rounded to bf16, the
log-probability of an answer is off by tenths of a nat, of which DPO takes beta, a tenth."""


@dataclass(frozen=True)
class Size:
    """How large a comparison is."""

    batch: int
    """Rows, pairs or prompts of a step."""
    max_length: int
    microbatch_tokens: int
    """Of our side."""
    answer_tokens: int
    """Of each answer of a rollout."""
    samples: int
    """Answers to a prompt in GRPO."""
    epochs: int
    """Passes over a rollout in PPO."""


@dataclass(frozen=True)
class Agreement:
    """A number that both sides have to share, or to have near what it must be."""

    what: str
    found: str
    distance: float
    bound: float

    @property
    def holds(self) -> bool:
        """Whether it is within its bound, which NaN isn't."""
        return self.distance <= self.bound

    def __str__(self) -> str:
        """Say it in a line."""
        verdict = "" if self.holds else ": NOT WITHIN"
        return f"{self.what}: {self.found}, bound {self.bound:g}{verdict}"


def config_of(stage: str, size: Size) -> StageConfig:
    """Return our config of a stage; TRL's is derived from it."""
    common = {
        "precision": "bf16",
        "compile": True,
        "global_batch_size": size.batch,
        "max_length": size.max_length,
        "microbatch_tokens": size.microbatch_tokens,
        "learning_rate": 1e-6,
        "warmup_fraction": 0.0,
    }
    names = {"rm": "reward_model", "grpo": "ppo"}
    config = {"stage": names.get(stage, stage), **common, **_of_rollouts(stage, size)}
    return TypeAdapter[StageConfig](StageConfig).validate_python(config)


def _of_rollouts(stage: str, size: Size) -> dict[str, Any]:
    """Return what reinforcement learning adds: answers of equal length, one update an epoch."""
    answers = {
        "rollout_prompts": size.batch,
        "max_new_tokens": size.answer_tokens,
        "min_new_tokens": size.answer_tokens,
        "missing_end_reward": None,
    }
    if stage == "ppo":
        estimator = {"name": "gae", "critic_learning_rate": 1e-6}
        return {**answers, "estimator": estimator, "ppo_epochs": size.epochs}
    if stage == "grpo":
        return {
            **answers,
            "estimator": {"name": "grpo"},
            "samples_per_prompt": size.samples,
            "ppo_epochs": 1,
            "kl_coef": 0.04,
            "kl_estimator": "k3",
            "kl_placement": "loss",
        }
    return {}


def trl_choices(config: StageConfig) -> list[TrlOptions]:
    """Return the ways in which TRL may compute a step."""
    units = step_units(config)
    batches = [units // parts for parts in (1, 2, 4) if units % parts == 0]
    choices = [TrlOptions(batch=batch) for batch in batches]
    if config.stage == "sft":
        choices += [TrlOptions(batch=batch, padding_free=True) for batch in batches]
    return choices


def compiled(config: StageConfig, options: TrlOptions) -> TrlOptions | None:
    """Return the options with TRL's model compiled; None for rollouts, which generate eagerly."""
    return None if isinstance(config, PPOConfig) else options.replaced(compile=True)


def unit(config: StageConfig) -> str:
    """Return what is counted a second."""
    if isinstance(config, PPOConfig):
        return "episodes/s"
    return "tokens/s" if config.stage == "sft" else "pairs/s"


def counts(config: StageConfig, workload: Workload) -> list[int]:
    """Return the units of each step."""
    if config.stage == "sft":
        return workload.tokens
    return [step_units(config)] * len(workload.steps)


def agreements(
    config: StageConfig,
    workload: Workload,
    ours: Sequence[RunReport],
    theirs: Sequence[RunReport],
) -> list[Agreement]:
    """Return what can agree.

    What is learnt from given rows gives equal losses. Of a rollout each side samples its own, so
    that rewards and losses are those of different answers; but both have to start at the reference,
    with a ratio of 1, and to be given the same prompts and answers of the same length.

    Args:
        config: Of the stage.
        workload: What was computed.
        ours: All runs, the warm-up first.
        theirs: The same of TRL.
    """
    if isinstance(config, PPOConfig):
        return _of_sampling(config, workload, ours, theirs)
    apart = max(
        abs(a - b)
        for mine, other in zip(ours, theirs, strict=True)
        for a, b in zip(mine.losses, other.losses, strict=True)
    )
    return [Agreement("losses of a step", f"at most {apart:.4f} apart", apart, _LOSS_BOUND)]


def _of_sampling(
    config: PPOConfig,
    workload: Workload,
    ours: Sequence[RunReport],
    theirs: Sequence[RunReport],
) -> list[Agreement]:
    first, trl_first = ours[0].steps[0], theirs[0].steps[0]
    num_answers = step_units(config)
    answer = config.max_new_tokens
    expected = [
        tokens * config.samples_per_prompt + num_answers * answer for tokens in workload.tokens
    ]
    trl_tokens = [step["tokens"] for run in theirs for step in run.steps]
    lengths = [step["response_tokens"] for run in ours for step in run.steps]
    misfit = max(abs(a - b) for a, b in zip(trl_tokens, expected, strict=True))
    found = [
        Agreement(
            "tokens of TRL's steps, prompts and answers",
            f"at most {misfit:g} from ours",
            misfit,
            0,
        ),
        Agreement(
            "tokens of an answer",
            f"{min(lengths):g} to {max(lengths):g}",
            max(abs(length - answer) for length in lengths),
            0,
        ),
    ]
    pairs = {
        "KL of the first rollout, nats a token": (
            first["kl_nats"] / answer,
            trl_first["kl_nats"] / answer if "kl_nats" in trl_first else trl_first["kl"],
            0.0,
            _KL_BOUND,
        ),
    }
    if config.critic is not None:
        means = (first["start_ratio"], trl_first["ratio"], 1.0, _RATIO_BOUND)
        pairs["ratio of the policy to itself"] = means
    else:
        # Advantages add up to 0 over answers of one length, and the divergence is 0.
        pairs["loss of the first update"] = (first["loss"], trl_first["loss"], 0.0, _LOSS_BOUND)
    for what, (mine, other, wanted, bound) in pairs.items():
        distance = max(abs(mine - wanted), abs(other - wanted))
        found.append(Agreement(what, f"{mine:.5f} and {other:.5f}, {wanted:g}", distance, bound))
    return found
