"""Optimizer and learning-rate schedule of a run, both Megatron's."""

import math
from collections.abc import Iterable

import torch

from alignflow.training.config import TrainerConfig
from alignflow.training.megatron.core import (
    DistributedDataParallel,
    MegatronOptimizer,
    OptimizerConfig,
    OptimizerParamScheduler,
    ParamKey,
    get_megatron_optimizer,
    get_standard_config_overrides,
)

# In the denominator of the factor that clips, as in Megatron and torch.
_CLIP_EPS = 1e-6


def build_optimizer(
    config: TrainerConfig, model: DistributedDataParallel, *, is_sharded: bool
) -> MegatronOptimizer:
    """Return AdamW over the model's parameters; bf16 weights get fp32 master weights.

    Norm weights and biases are not decayed.

    Args:
        config: Learning rate, decay and clipping.
        model: The model, whose gradient buffers are sharded alike.
        is_sharded: Split states and master weights over the data-parallel ranks.
    """
    megatron_config = OptimizerConfig(
        optimizer="adam",
        lr=config.learning_rate,
        min_lr=config.min_learning_rate,
        weight_decay=config.weight_decay,
        adam_beta1=config.adam_beta1,
        adam_beta2=config.adam_beta2,
        adam_eps=config.adam_eps,
        bf16=config.precision == "bf16",
        params_dtype=torch.bfloat16 if config.precision == "bf16" else torch.float32,
        use_distributed_optimizer=is_sharded,
    )
    overrides = get_standard_config_overrides(megatron_config)
    if config.precision == "bf16":
        # Megatron's sharded optimizer mixes up bf16 and fp32 weights of one group: the reward head
        # gets its own, by an override that changes nothing.
        overrides[ParamKey(attr="is_reward_head")] = {"wd_mult": 1.0}
    optimizer = get_megatron_optimizer(megatron_config, [model], config_overrides=overrides)
    for adam in torch_adams(optimizer):
        _fuse(adam)
        _allocate_state(adam)
    return optimizer


@torch.no_grad()
def update(optimizer: MegatronOptimizer, num_units: float, clip_grad: float) -> float:
    """Apply the gradient of a mean whose sum over all units has been accumulated.

    Dividing by the units and clipping are one factor, by which the fused update divides on its way:
    Megatron's own clipping and division are passes over memory of their own.

    Args:
        optimizer: Made of the parameters, whose gradients are summed over ranks.
        num_units: What the sum is divided by.
        clip_grad: Largest global norm of the mean's gradient; 0 turns clipping off.

    Returns:
        The norm before clipping. Where it isn't finite nothing is applied.
    """
    optimizer.prepare_grads()
    grad_norm = float(optimizer.get_grad_norm()) / num_units
    if not math.isfinite(grad_norm):
        return grad_norm
    clipping = max(1.0, (grad_norm + _CLIP_EPS) / clip_grad) if clip_grad > 0 else 1.0
    _divide_gradients(optimizer, num_units * clipping)
    optimizer.step_with_ready_grads()
    return grad_norm


def _divide_gradients(optimizer: MegatronOptimizer, divisor: float) -> None:
    """Have the gradients divided: by torch's optimizer as it updates, by another one's here."""
    for part in _parts(optimizer):
        if isinstance(part.optimizer, torch.optim.Adam):
            # Read by torch's fused optimizers, which got it for loss scaling and take it to the
            # device of the parameters, of which a rank may hold none.
            part.optimizer.grad_scale = torch.tensor(divisor)  # type: ignore[attr-defined]
        elif part.optimizer is not None:
            for parameter in part.get_parameters():
                if parameter.grad is not None:
                    parameter.grad.div_(divisor)


@torch.no_grad()
def set_master_weights(
    optimizer: MegatronOptimizer, weights: Iterable[tuple[torch.nn.Parameter, torch.Tensor]]
) -> None:
    """Give the fp32 master weights of bf16 parameters the bits that rounding took.

    Megatron makes them of the rounded parameters: a step that is small beside a bit of bf16 would
    first have to make good for that. Frozen parameters have none, and of a sharded optimizer's each
    rank has its part.

    Args:
        optimizer: Made of the parameters.
        weights: Each parameter and the weight that it was set from.
    """
    parts = _parts(optimizer)
    for parameter, weight in weights:
        master = getattr(parameter, "main_param", None)
        if master is None:
            continue
        if getattr(parameter, "main_param_sharded", False):
            (part,) = (part for part in parts if parameter in part.model_param_gbuf_map)
            own = part._get_model_param_range_map(parameter)["param"]
            weight = weight.reshape(-1)[own.start : own.end]
        master.copy_(weight)


def torch_adams(optimizer: MegatronOptimizer) -> list[torch.optim.Adam]:
    """Return torch's optimizers inside Megatron's; none where it uses Transformer Engine's."""
    return [
        part.optimizer for part in _parts(optimizer) if isinstance(part.optimizer, torch.optim.Adam)
    ]


def _parts(optimizer: MegatronOptimizer) -> list[MegatronOptimizer]:
    parts: list[MegatronOptimizer] = getattr(optimizer, "chained_optimizers", [optimizer])
    return parts


def build_scheduler(
    config: TrainerConfig, optimizer: MegatronOptimizer, *, num_steps: int
) -> OptimizerParamScheduler:
    """Return the schedule, set to the learning rate of the first step.

    Of `num_steps` steps the first `warmup_fraction` rise linearly to the peak, which the last of
    them has; the decay reaches the minimum after the last step, so no step is lost to a rate of 0.
    """
    warmup_steps = int(config.warmup_fraction * num_steps)
    offset = 1 if warmup_steps else 0
    scheduler = OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=config.learning_rate,
        min_lr=config.min_learning_rate,
        lr_warmup_steps=warmup_steps,
        lr_decay_steps=num_steps + offset,
        lr_decay_style=config.schedule,
        start_wd=config.weight_decay,
        end_wd=config.weight_decay,
        wd_incr_steps=0,
        wd_incr_style="constant",
    )
    scheduler.step(increment=offset)
    return scheduler


def _fuse(adam: torch.optim.Adam) -> None:
    """Update in one pass over memory; Megatron's builder has no option for it."""
    for group in adam.param_groups:
        group["fused"], group["foreach"] = True, False


def _allocate_state(adam: torch.optim.Adam) -> None:
    """Make the moments now; Megatron's checkpoints expect them, torch makes them in a step."""
    for group in adam.param_groups:
        for parameter in group["params"]:
            adam.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
