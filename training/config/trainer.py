"""What every training stage shares."""

from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from alignflow.config import Config

Precision = Literal["fp32", "bf16"]
Recompute = Literal["none", "selective", "full"]

SURVIVAL_FIELDS = frozenset(
    {
        "checkpoint_every_steps",
        "keep_checkpoints",
        "max_loss",
        "max_grad_norm",
        "max_accuracy_drop",
        "accuracy_drop_validations",
        "recompute",
        "compile",
        "max_kl_nats",
        "max_length_ratio",
        "max_sampler_delta",
        "max_unended_share",
    }
)
"""Fields that decide how a job survives and is computed, not what: no part of keys and
checkpoints."""

LAYOUT_FIELDS = frozenset(
    {
        "tensor_model_parallel_size",
        "pipeline_model_parallel_size",
        "data_parallel_size",
        "sequence_parallel",
        "context_parallel_size",
    }
)
"""Fields of `parallel` that decide where sums are made, not what they are: a checkpoint may be
loaded under others, and a model is reused under others."""


class ParallelConfig(Config):
    """How a model spreads over the processes of a job."""

    tensor_model_parallel_size: PositiveInt = 1
    pipeline_model_parallel_size: PositiveInt = 1
    data_parallel_size: PositiveInt = 1
    use_distributed_optimizer: bool = False
    """Shard optimizer states and fp32 weights over the data-parallel ranks (ZeRO-1)."""
    sequence_parallel: bool = False
    """Split what lies between the tensor-parallel matrix products over the tokens: norms and
    residuals take less memory (arXiv:2205.05198). Needs tensor_model_parallel_size above 1."""
    context_parallel_size: PositiveInt = 1
    """Ranks that share the tokens of each microbatch; attention trades tokens for heads between
    them (arXiv:2309.14509). The layers are then Megatron's own, not Transformer Engine's."""

    @property
    def world_size(self) -> int:
        """Processes that the layout needs."""
        return (
            self.tensor_model_parallel_size
            * self.pipeline_model_parallel_size
            * self.data_parallel_size
            * self.context_parallel_size
        )

    @model_validator(mode="after")
    def _sequence_parallel_splits(self) -> Self:
        if self.sequence_parallel and self.tensor_model_parallel_size == 1:
            raise ValueError("sequence_parallel needs tensor_model_parallel_size above 1")
        return self


Projection = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class LoRAConfig(Config):
    """Low-rank adapters that are trained instead of the model's weights (arXiv:2106.09685).

    An adapter adds (alpha / rank) B A x to what a linear layer makes of x; B starts at 0.
    """

    rank: PositiveInt = 16
    """Rows of A and columns of B."""
    alpha: PositiveFloat = 32.0
    """Weight of the adapters, as a multiple of the rank."""
    targets: Annotated[tuple[Projection, ...], Field(min_length=1)] = get_args(Projection)
    """Linear layers that get an adapter, by their Hugging Face names; all of them by default."""

    @field_validator("targets")
    @classmethod
    def _targets_differ(cls, targets: tuple[Projection, ...]) -> tuple[Projection, ...]:
        if len(set(targets)) < len(targets):
            raise ValueError("targets names a layer twice")
        return targets


class TrainerConfig(Config):
    """What every training stage shares: data order, batch, optimizer, checkpoints and guards."""

    max_length: PositiveInt = 1024
    """Tokens of a rendered row; longer rows are cut at the end, and the cuts are counted."""
    global_batch_size: PositiveInt = 32
    """Rows (SFT), pairs (reward model, DPO) or responses (KTO) of one optimizer step over all
    ranks."""
    microbatch_tokens: PositiveInt = 4096
    """Most tokens of one packed microbatch; a single longer row forms its own."""
    num_epochs: PositiveInt = 1
    """Passes over the training set, each in an order of its own."""
    max_steps: PositiveInt | None = None
    """Stop after this many steps even if an epoch is not over."""
    seed: NonNegativeInt = 1234
    """Seed of data order and initial weights of new heads."""
    precision: Precision = "bf16"
    """Compute type of weights and activations; bf16 keeps fp32 master weights."""
    parallel: ParallelConfig = ParallelConfig()
    lora: LoRAConfig | None = None
    """Train low-rank adapters and keep the weights as they are; None trains all weights."""
    recompute: Recompute = "none"
    """Activations that the backward pass computes again instead of keeping them: those of attention
    (selective) or of whole layers (full). Less memory and more time, the same gradients."""
    compile: bool = False
    """Compile the element-wise parts of the model, which on a CPU take most of a step. Needs a C++
    compiler; the first job on a machine spends some 20 seconds at it."""

    learning_rate: PositiveFloat = 1e-5
    """Peak learning rate."""
    min_learning_rate: NonNegativeFloat = 0.0
    """Learning rate at the end of the schedule."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Form of the decay after warm-up."""
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the steps over which the learning rate rises linearly from 0."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay (arXiv:1711.05101), as a share of the learning rate."""
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay of the gradient's running mean."""
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """Decay of the squared gradient's running mean."""
    adam_eps: PositiveFloat = 1e-8
    """Added to the root of the squared gradient's mean."""
    clip_grad: NonNegativeFloat = 1.0
    """Largest global gradient norm; 0 turns clipping off."""

    checkpoint_every_steps: PositiveInt = 100
    """Steps between checkpoints that a killed job resumes from."""
    keep_checkpoints: PositiveInt = 2
    """How many of the latest checkpoints stay on disk until the stage is done."""
    validate_every_steps: PositiveInt | None = None
    """Steps between losses on the held-out rows; None measures at the start and the end only."""
    early_stop_patience: PositiveInt | None = None
    """End training after so many validations in a row without a lower held-out loss than before;
    None trains all steps. Needs validate_every_steps."""
    restore_best: bool = False
    """Keep the checkpoint of the lowest held-out loss besides the latest ones, and end with its
    model rather than that of the last step. Needs validate_every_steps."""
    max_validation_rows: PositiveInt | None = 256
    """Held-out rows (SFT) or pairs that are measured, the first ones; None measures all."""
    max_loss: PositiveFloat = 100.0
    """A loss above this, NaN or infinity stops the job as diverged; in nats a token (SFT) or a
    pair, but in units of its own for `ipo`, `rpo_sq` and `kto`."""
    max_grad_norm: PositiveFloat | None = None
    """A gradient norm above this, before clipping, stops the job as diverged; None lets every
    finite one pass."""

    def identity(self) -> dict[str, Any]:
        """Return the fields that determine the model: not how a job survives, nor its layout."""
        return self.model_dump(
            mode="json",
            exclude={**dict.fromkeys(SURVIVAL_FIELDS, True), "parallel": set(LAYOUT_FIELDS)},
        )

    @model_validator(mode="after")
    def _learning_rates_are_ordered(self) -> Self:
        if self.min_learning_rate > self.learning_rate:
            raise ValueError("min_learning_rate must not exceed learning_rate")
        if self.min_learning_rate and self.schedule == "constant":
            raise ValueError("min_learning_rate does nothing under the schedule constant")
        return self

    @model_validator(mode="after")
    def _what_reads_validations_has_them(self) -> Self:
        for name in ("early_stop_patience", "restore_best"):
            if getattr(self, name) and self.validate_every_steps is None:
                raise ValueError(f"{name} needs validate_every_steps")
        return self
