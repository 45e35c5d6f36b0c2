"""TRL's name for everything: which version, trainer and settings compute what a config says."""

from pathlib import Path
from typing import Any

import torch

from alignflow.config import Config
from alignflow.training.config import PPOConfig, StageConfig

TRL = "trl==1.16.0"
TRL_WITH_PPO = "trl==1.12.0"
"""The last version that has a PPO trainer."""


_DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


class TrlOptions(Config):
    """How TRL is to compute a step; what it computes is the stage's config."""

    batch: int
    """Rows (SFT), pairs or answers at a time; a step takes as many parts as it needs."""
    padding_free: bool = False
    """Flatten the rows of a part into one, SFT only."""
    compile: bool = False
    """By torch.compile."""

    def __str__(self) -> str:
        """Name the options in a table."""
        flags = {"padding-free": self.padding_free, "compiled": self.compile}
        return ", ".join([f"{self.batch} at a time", *(name for name in flags if flags[name])])


def requirement(config: StageConfig) -> str:
    """Return the version that has a trainer for the stage."""
    return TRL_WITH_PPO if isinstance(config, PPOConfig) and config.critic is not None else TRL


def trl_script(config: StageConfig) -> str:
    """Return the script that runs the stage's trainer."""
    if not isinstance(config, PPOConfig):
        return "trl_side.py"
    return "trl_grpo_side.py" if config.critic is None else "trl_ppo_side.py"


def step_rows(config: StageConfig) -> int:
    """Return the rows, pairs or prompts that a step takes."""
    return config.rollout_prompts if isinstance(config, PPOConfig) else config.global_batch_size


def step_units(config: StageConfig) -> int:
    """Return the rows, pairs or answers that a step learns from, which TRL splits into parts."""
    samples = config.samples_per_prompt if isinstance(config, PPOConfig) else 1
    return step_rows(config) * samples


def trl_row(config: StageConfig, record: dict[str, Any]) -> dict[str, Any]:
    """Return a record as a trainer takes it."""
    if config.stage == "ppo":
        return {"prompt": record["prompt"]}
    if "messages" in record:
        return {"messages": record["messages"]}
    answers = {
        name: [{"role": "assistant", "content": record[name]}] for name in ("chosen", "rejected")
    }
    return {"prompt": record["prompt"], **answers}


def trl_settings(config: StageConfig, options: TrlOptions, folder: Path) -> dict[str, Any]:
    """Return the arguments of the trainer's config.

    Args:
        config: What is to be computed.
        options: How.
        folder: Where the trainer writes.
    """
    common = _common(config, options, folder)
    if isinstance(config, PPOConfig):
        return {**common, **(_ppo(config) if config.critic is not None else _grpo(config))}
    common = {
        **common,
        "max_length": config.max_length,
        "train_sampling_strategy": "sequential",
        "logging_strategy": "no",
    }
    if config.stage == "sft":
        return {**common, "assistant_only_loss": True, **_flattened(options)}
    if config.stage == "dpo":
        return {**common, "beta": config.beta, "precompute_ref_log_probs": True}
    return common


def _common(config: StageConfig, options: TrlOptions, folder: Path) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": options.batch,
        "gradient_accumulation_steps": step_units(config) // options.batch,
        "num_train_epochs": 1,
        "seed": config.seed,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": config.schedule,
        "warmup_steps": 0,
        "weight_decay": config.weight_decay,
        "adam_beta1": config.adam_beta1,
        "adam_beta2": config.adam_beta2,
        "adam_epsilon": config.adam_eps,
        "max_grad_norm": config.clip_grad,
        "optim": "adamw_torch_fused",
        "bf16": config.precision == "bf16",
        "torch_compile": options.compile,
        "use_cpu": not torch.cuda.is_available(),
        "gradient_checkpointing": False,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def _flattened(options: TrlOptions) -> dict[str, Any]:
    # Without packing TRL takes padding-free rows only if nothing has to be cut.
    return {"padding_free": True, "max_length": None} if options.padding_free else {}


def _ppo(config: PPOConfig) -> dict[str, Any]:
    """Return what PPO adds; actor and critic share an optimizer, and no gradient is clipped."""
    assert config.critic is not None
    return {
        "num_mini_batches": 1,
        # TRL reports the ratio as a mean over all updates of a rollout. Its warm-up begins at a
        # learning rate of 0: those of the first, which isn't timed, leave the policy as it was.
        "warmup_steps": 1,
        "num_ppo_epochs": config.ppo_epochs,
        # All answers decode together, which reads the weights the fewest times.
        "local_rollout_forward_batch_size": step_units(config),
        "num_sample_generations": 0,
        "response_length": config.max_new_tokens,
        "stop_token": None,
        "temperature": config.temperature,
        "missing_eos_penalty": None,
        "kl_coef": config.kl_coef,
        "kl_estimator": config.kl_estimator,
        "cliprange": config.ratio_clip,
        "cliprange_value": config.critic.value_clip,
        "vf_coef": 1.0,
        "gamma": config.critic.discount,
        "lam": config.critic.decay,
        "logging_strategy": "steps",
        "logging_steps": 1,
    }


def _grpo(config: PPOConfig) -> dict[str, Any]:
    """Return what GRPO adds; one rollout makes one optimizer step."""
    return {
        # Of the reference, which is loaded by itself.
        "model_init_kwargs": {"dtype": _DTYPES[config.precision]},
        "num_generations": config.samples_per_prompt,
        "generation_batch_size": step_units(config),
        "max_completion_length": config.max_new_tokens,
        "generation_kwargs": {"min_new_tokens": config.min_new_tokens},
        "temperature": config.temperature,
        "beta": config.kl_coef,
        "epsilon": config.ratio_clip,
        "loss_type": "dapo",
        "scale_rewards": "group",
        "shuffle_dataset": False,
        "logging_strategy": "steps",
        "logging_steps": 1,
    }
