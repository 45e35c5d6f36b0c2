"""A model in training: one optimizer step at a time, over every layout."""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn

from alignflow.training.batch import PackedBatch
from alignflow.training.config import TrainerConfig
from alignflow.training.errors import DivergedError
from alignflow.training.losses import SummedLoss
from alignflow.training.megatron import checkpoint
from alignflow.training.megatron.architecture import read_architecture
from alignflow.training.megatron.core import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    MegatronOptimizer,
    OptimizerParamScheduler,
    finalize_model_grads,
    get_forward_backward_func,
    parallel_state,
)
from alignflow.training.megatron.cpu_host import cuda_calls_on_cpu
from alignflow.training.megatron.export import export_model
from alignflow.training.megatron.inference import LanguageModel
from alignflow.training.megatron.lora import adapters_off, add_adapters
from alignflow.training.megatron.model import (
    Head,
    build_model,
    load_weights,
    stored_weights,
    trunk_parameters,
)
from alignflow.training.megatron.optimizer import (
    build_optimizer,
    build_scheduler,
    set_master_weights,
    update,
)
from alignflow.training.megatron.setup import initialize, shut_down

ComputeLoss = Callable[[Tensor, Any], SummedLoss]
"""From the model's output and the `PackedBatch`, or a subclass of it, to the loss."""

ForwardStep = Callable[[Iterator[PackedBatch], nn.Module], tuple[Tensor, Callable[..., Any]]]


class Run:
    """A model with its optimizer and schedule, spread over the ranks of the job.

    Every method is called by all ranks. The ranks that hold a replica of the model between them,
    context-parallel ones included, pass the same microbatches, data-parallel ranks their own; these
    may differ in number and in length.
    """

    def __init__(
        self,
        config: TrainerConfig,
        model: DistributedDataParallel,
        optimizer: MegatronOptimizer,
        scheduler: OptimizerParamScheduler,
        gradients: "_SummedGradients",
        model_dir: Path,
        device: torch.device,
    ) -> None:
        """Take what `build_run` made."""
        self.config = config
        self.model = model
        self.optimizer = optimizer
        self.scheduler = scheduler
        self._gradients = gradients
        self.model_dir = model_dir
        self.device = device

    @property
    def data_parallel_rank(self) -> int:
        """Which share of each global batch this rank computes."""
        rank: int = parallel_state.get_data_parallel_rank()
        return rank

    @property
    def data_parallel_size(self) -> int:
        """Into how many shares each global batch is split."""
        size: int = parallel_state.get_data_parallel_world_size()
        return size

    @property
    def shares_prefixes(self) -> bool:
        """Whether rows of a batch may share tokens; Transformer Engine knows whole rows only."""
        return not self.model.module.has_transformer_engine

    @property
    def is_main(self) -> bool:
        """Whether this rank writes the job's files."""
        return dist.get_rank() == 0

    @cuda_calls_on_cpu()
    def train_step(
        self, microbatches: Sequence[PackedBatch], compute_loss: ComputeLoss
    ) -> dict[str, float]:
        """Apply one optimizer update over one global batch.

        Args:
            microbatches: This rank's share, at least one.
            compute_loss: Called on the last pipeline stage.

        Returns:
            `loss` and the loss's metrics, each a mean per unit over the global batch, then
            `grad_norm` before clipping and the `learning_rate` of this update.

        Raises:
            DivergedError: The loss passes `max_loss`, the gradient norm `max_grad_norm`, or one of
                them is not finite. Raised on every rank alike.
        """
        learning_rate = self.optimizer.param_groups[0]["lr"]
        self.model.train()
        self.model.zero_grad_buffer()
        self.optimizer.zero_grad()
        sums = self._run_schedule(_training_step(compute_loss, self.device), microbatches)
        means = _means_per_unit(sums)
        # Written so that NaN fails too.
        if not means["loss"] <= self.config.max_loss:
            raise DivergedError(
                f"The loss is {means['loss']:.4g}, past max_loss {self.config.max_loss:g}; "
                "lower learning_rate or look at the data of this step."
            )
        grad_norm = update(self.optimizer, self._gradients.num_units, self.config.clip_grad)
        bound = math.inf if self.config.max_grad_norm is None else self.config.max_grad_norm
        if not math.isfinite(grad_norm) or grad_norm > bound:
            past = "" if math.isinf(bound) else f", past max_grad_norm {bound:g}"
            raise DivergedError(
                f"The gradient norm is {grad_norm:.4g}{past}; lower learning_rate or look at the "
                "data of this step."
            )
        self.scheduler.step(increment=1)
        return {**means, "grad_norm": grad_norm, "learning_rate": learning_rate}

    @cuda_calls_on_cpu()
    @torch.no_grad()
    def forward(self, microbatches: Sequence[PackedBatch]) -> list[Tensor]:
        """Return the model's output for each microbatch, without gradient.

        Returns:
            Log-probabilities in nats of `targets_N` or values, [N] float32, scores, [R] float32, or
            attributes, [R, K] float32; the same on every rank of the model-parallel group.
        """
        self.model.eval()
        outputs = self._run_schedule(
            _scoring_step(self.device), microbatches, forward_only=True, collect_non_loss_data=True
        )
        if parallel_state.get_pipeline_model_parallel_world_size() == 1:
            return outputs
        return [
            self._from_last_stage(outputs[i] if outputs else None, batch)
            for i, batch in enumerate(microbatches)
        ]

    def forward_without_adapters(self, microbatches: Sequence[PackedBatch]) -> list[Tensor]:
        """Return what `forward` would have before training: the reference without a copy of it.

        Raises:
            ValueError: The model has no adapters.
        """
        with adapters_off(self.model.module):
            return self.forward(microbatches)

    def language_model(self) -> LanguageModel:
        """Return the model as one that is asked for answers; it shares the weights in training.

        Made by `build_run` with `must_generate`, and whole on each rank.
        """
        return LanguageModel(self.model.module, self.device)

    @cuda_calls_on_cpu()
    def save_checkpoint(self, folder: Path, state: dict[str, Any]) -> None:
        """Write all that continues this run bit for bit, and a JSON-able state of the caller's."""
        checkpoint.save(folder, self.model, self.optimizer, self.scheduler, state)

    @cuda_calls_on_cpu()
    def load_checkpoint(self, folder: Path) -> dict[str, Any]:
        """Continue from a checkpoint; returns the caller's state.

        Raises:
            DataError: The folder isn't a whole checkpoint.
        """
        return checkpoint.load(folder, self.model, self.optimizer, self.scheduler)

    def export(self, folder: Path) -> None:
        """Write the model as a Hugging Face folder with the tokenizer of the initial one."""
        export_model(self.model.module, self.model_dir, folder)

    def close(self) -> None:
        """Leave the process group; returns when all ranks do."""
        shut_down()

    def __enter__(self) -> Self:
        """Return the run itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        """Leave the process group, but not after an error: the other ranks may never get here."""
        if error is None:
            self.close()

    def _run_schedule(
        self, forward_step: ForwardStep, microbatches: Sequence[PackedBatch], **options: bool
    ) -> list[Any]:
        """Run Megatron's schedule; returns what the last stage collected, [] on the others."""
        if not microbatches:
            raise ValueError("a rank needs at least one microbatch")
        collected: list[Any] = get_forward_backward_func()(
            forward_step_func=forward_step,
            data_iterator=iter(microbatches),
            model=self.model,
            num_microbatches=len(microbatches),
            # Stages tell each other the shape of each tensor that they send.
            seq_length=1,
            micro_batch_size=1,
            **{"forward_only": False, **options},
        )
        return collected

    def _from_last_stage(self, output: Tensor | None, batch: PackedBatch) -> Tensor:
        module = self.model.module
        shape = {
            "lm": (batch.targets_N.numel(),),
            "reward": (batch.num_rows,),
            "attributes": (batch.num_rows, module.num_attributes),
        }[module.head]
        if output is None:
            output = torch.empty(shape, dtype=torch.float32, device=self.device)
        dist.broadcast(
            output,
            src=parallel_state.get_pipeline_model_parallel_last_rank(),
            group=parallel_state.get_pipeline_model_parallel_group(),
        )
        return output


@cuda_calls_on_cpu()
def build_run(
    config: TrainerConfig,
    model_dir: Path,
    *,
    head: Head,
    num_steps: int,
    temperature: float = 1.0,
    must_generate: bool = False,
    num_attributes: int = 0,
) -> Run:
    """Join the job's process group and build a model in training from a Hugging Face folder.

    Args:
        config: Layout, precision, optimizer and schedule.
        model_dir: Initial weights; a `reward_head.safetensors` beside them is used by the head
            `reward`.
        head: `lm` for log-probabilities of tokens, `reward` for a score of each row, `value` for
            one at each scored position, by the same layer, `attributes` for several of each row.
        num_steps: Optimizer steps of the whole schedule.
        temperature: Divides the logits that log-probabilities are made of.
        must_generate: The model is asked for answers too, as Transformer Engine's layers can't.
        num_attributes: Scores that the head `attributes` gives a row.

    Raises:
        ConfigError: The model or the job's processes don't fit the layout.
        DataError: The folder holds no model that can be trained.
    """
    architecture = read_architecture(model_dir)
    device = initialize(config.parallel, seed=config.seed)
    module = build_model(
        architecture,
        head=head,
        precision=config.precision,
        parallel=config.parallel,
        recompute=config.recompute,
        compiles=config.compile,
        device=device,
        # Its layers keep the norm that comes before them to themselves, and with it the input that
        # an adapter needs.
        allow_transformer_engine=config.lora is None and not must_generate,
        num_attributes=num_attributes,
    )
    module.temperature = temperature
    load_weights(module, model_dir, seed=config.seed)
    if config.lora is not None:
        add_adapters(module, config.lora, seed=config.seed)
    # Megatron's plain optimizer can't checkpoint bf16 weights beside a reward head in fp32; its
    # distributed one can, and makes the same updates.
    is_sharded = config.parallel.use_distributed_optimizer or (
        head != "lm" and config.precision == "bf16"
    )
    model = DistributedDataParallel(
        module.config,
        DistributedDataParallelConfig(
            grad_reduce_in_fp32=True,
            use_distributed_optimizer=is_sharded,
            # The loss and the gradient norm are looked at on all ranks alike, see `train_step`.
            check_for_nan_in_grad=False,
        ),
        module,
    )
    optimizer = build_optimizer(config, model, is_sharded=is_sharded)
    if config.precision == "bf16":
        parameters = trunk_parameters(module)
        stored = stored_weights(module, model_dir)
        set_master_weights(optimizer, ((parameters[name], weight) for name, weight in stored))
    module.config.finalize_model_grads_func = gradients = _SummedGradients()
    module.config.grad_scale_func = optimizer.scale_loss
    scheduler = build_scheduler(config, optimizer, num_steps=num_steps)
    return Run(config, model, optimizer, scheduler, gradients, model_dir, device)


class _SummedGradients:
    """Finishes the gradients of a step as Megatron does, but leaves them a sum over all units."""

    num_units = 1

    def __call__(self, model: list[nn.Module], num_units: Tensor, **options: Any) -> None:
        """Reduce the gradients over replicas and count the units of all of them."""
        finalize_model_grads(model, None, **options)
        dist.broadcast(
            num_units,
            src=parallel_state.get_pipeline_model_parallel_last_rank(),
            group=parallel_state.get_pipeline_model_parallel_group(),
        )
        replicas = parallel_state.get_data_parallel_group(with_context_parallel=True)
        dist.all_reduce(num_units, group=replicas)
        self.num_units = max(1, int(num_units))


def _training_step(compute_loss: ComputeLoss, device: torch.device) -> ForwardStep:
    """Adapt a pure loss to a Megatron schedule, which divides the gradient by the units once."""

    def forward_step(
        batches: Iterator[PackedBatch], model: nn.Module
    ) -> tuple[Tensor, Callable[..., Any]]:
        batch = next(batches).to(device)

        def loss_func(output: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
            loss = compute_loss(output, batch)
            sums = {"units": loss.units, "loss": loss.total.detach(), **loss.metrics}
            return loss.total, loss.units, sums

        return model(batch), loss_func

    return forward_step


def _scoring_step(device: torch.device) -> ForwardStep:
    def forward_step(
        batches: Iterator[PackedBatch], model: nn.Module
    ) -> tuple[Tensor, Callable[..., Any]]:
        return model(next(batches).to(device)), lambda output, non_loss_data: output

    return forward_step


def _means_per_unit(sums: list[dict[str, Tensor]]) -> dict[str, float]:
    """Return the means over the global batch, on every rank.

    Args:
        sums: Of each microbatch on the last pipeline stage; [] on the others.
    """
    means: list[dict[str, float] | None] = [None]
    if sums:
        names = list(sums[0])
        totals = torch.stack(
            [torch.stack([s[name].double() for s in sums]).sum() for name in names]
        )
        dist.all_reduce(totals, group=parallel_state.get_data_parallel_group())
        units, *values = totals.tolist()
        means[0] = {n: v / max(units, 1.0) for n, v in zip(names[1:], values, strict=True)}
    if parallel_state.get_pipeline_model_parallel_world_size() > 1:
        dist.broadcast_object_list(
            means,
            src=parallel_state.get_pipeline_model_parallel_last_rank(),
            group=parallel_state.get_pipeline_model_parallel_group(),
        )
    if means[0] is None:
        raise RuntimeError("the last pipeline stage sent no means")
    return means[0]
