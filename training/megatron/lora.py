"""LoRA (arXiv:2106.09685): low-rank adapters beside frozen weights, as PEFT computes them.

Megatron fuses the projections q, k and v into one weight, and gate and up into another; PEFT gives
each of them an A and a B of its own. An adapter here is exactly that set: its A holds the A of each
projection one below the other, its B the rows of their B in the order of the fused weight's rows,
and a row of B meets only the A of its own projection. Rows of projections that are no target get
no gradient and stay 0.

Under tensor parallelism an adapter is split like its weight, so that a rank's part of the weight
and of the adapter merge where they lie. Beside a column-parallel weight every rank holds the whole
A and its rows of B; each rank's rows give a part of the gradient of A x, which is summed. Beside a
row-parallel weight every rank holds its columns of A and the whole B; the parts of A x are summed.
With sequence parallelism A x is what ranks exchange, not x: the whole A or B sees a rank's share of
the tokens, and Megatron adds up its gradients as it does those of the norms.
"""

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alignflow.training.config import LoRAConfig
from alignflow.training.megatron.convert import (
    Columns,
    GateAndUp,
    GroupedQKV,
    Rule,
    Shard,
    Whole,
    conversion_rules,
)
from alignflow.training.megatron.core import (
    apply_swiglu_sharded_factory,
    make_sharded_tensors_for_checkpoint,
    parallel_state,
    tensor_parallel,
)
from alignflow.training.megatron.model import PackedModel
from alignflow.training.megatron.score_heads import AttributeHead, RewardHead

_LINEARS = (
    "self_attention.linear_qkv",
    "self_attention.linear_proj",
    "mlp.linear_fc1",
    "mlp.linear_fc2",
)


@dataclass(frozen=True)
class AdapterLayout:
    """Which projections of a Megatron weight are adapted, and how A and B are split over ranks."""

    rule: Rule
    """Conversion rule of the weight."""
    rank: int
    projections: tuple[str, ...]
    """Their Hugging Face modules, such as `model.layers.0.self_attn.q_proj`, in the order of A."""

    @classmethod
    def of(cls, rule: Rule, config: LoRAConfig) -> "AdapterLayout":
        """Return the layout for those projections of the weight that are targets."""
        modules = [name.removesuffix(".weight") for name in rule.shapes]
        targets = tuple(m for m in modules if m.rpartition(".")[2] in config.targets)
        return cls(rule, config.rank, targets)

    @property
    def is_row_parallel(self) -> bool:
        """Whether ranks split the weight along its input."""
        return isinstance(self.rule, Columns)

    @property
    def num_inputs(self) -> int:
        """Inputs of the weight, over all ranks."""
        return next(iter(self.rule.shapes.values()))[1]

    @property
    def rule_of_b(self) -> Rule:
        """How ranks share the rows of B, by the names of the projections' weights."""
        match self.rule:
            case GroupedQKV():
                return replace(self.rule, width=(self.rank,))
            case GateAndUp(shape=(num_rows, _)):
                return replace(self.rule, shape=(num_rows, self.rank))
            case Columns(name=name, shape=(num_rows, _)):
                return Whole(name, (num_rows, self.rank))
        raise TypeError(f"{self.rule} is no rule of a linear layer")

    def row_owners(self, shard: Shard) -> Tensor:
        """Return [rows of B, projections] bool, which projection each row of a rank is part of."""
        read = self.rule_of_b.read(_OwnNames(tuple(self.rule.shapes)), shard)[:, :1]
        order = [list(self.rule.shapes).index(f"{name}.weight") for name in self.projections]
        return read == torch.tensor(order)

    def initial_a(self, shard: Shard, *, seed: int) -> Tensor:
        """Return a rank's A as PEFT draws it, Kaiming-uniform; the same values in every layout."""
        drawn = torch.empty(len(self.projections), self.rank, self.num_inputs)
        for name, a_RI in zip(self.projections, drawn, strict=True):
            digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)
            nn.init.kaiming_uniform_(a_RI, a=math.sqrt(5), generator=generator)
        whole = drawn.flatten(0, 1)
        return whole[:, shard.of(self.num_inputs)].clone() if self.is_row_parallel else whole

    def unfused(self, parts_a: list[Tensor], parts_b: list[Tensor]) -> dict[str, Tensor]:
        """Return A and B of each projection by their names in PEFT's files.

        Args:
            parts_a: A of all tensor-parallel ranks, in their order.
            parts_b: B of the same.
        """
        whole_a = torch.cat(parts_a, dim=1) if self.is_row_parallel else parts_a[0]
        all_b = self.rule_of_b.write(parts_b)
        tensors = {}
        for name, a_RI in zip(self.projections, torch.split(whole_a, self.rank), strict=True):
            tensors[f"base_model.model.{name}.lora_A.weight"] = a_RI
            tensors[f"base_model.model.{name}.lora_B.weight"] = all_b[f"{name}.weight"]
        return tensors


@dataclass(frozen=True)
class _OwnNames:
    """Stands for weights whose every element is the number of the tensor it belongs to."""

    names: tuple[str, ...]

    def read(
        self,
        name: str,
        shape: tuple[int, ...],
        *,
        rows: slice | None = None,
        columns: slice | None = None,
    ) -> Tensor:
        """See `Source`."""
        whole = torch.full((), self.names.index(name)).expand(shape)
        return whole[rows or slice(None), columns or slice(None)]


class Adapter(nn.Module):
    """What a rank holds of the adapters of one Megatron weight."""

    is_own: Tensor
    """[rows, projections] 1 where the row of B is part of the projection, else 0."""

    def __init__(
        self,
        layout: AdapterLayout,
        config: LoRAConfig,
        weight: Tensor,
        *,
        sequence_parallel: bool,
        seed: int,
    ) -> None:
        """Make A random and B zero, of the weight's type and on its device."""
        super().__init__()
        self.layout = layout
        self.sequence_parallel = sequence_parallel
        self.scaling = config.alpha / config.rank
        shard = Shard(
            parallel_state.get_tensor_model_parallel_rank(),
            parallel_state.get_tensor_model_parallel_world_size(),
        )
        self.a = nn.Parameter(layout.initial_a(shard, seed=seed).to(weight))
        self.b = nn.Parameter(weight.new_zeros(weight.size(0), config.rank))
        split, whole = (self.a, self.b) if layout.is_row_parallel else (self.b, self.a)
        # Megatron counts a parameter in the gradient norm on every rank only where this is set.
        split.tensor_model_parallel = True  # type: ignore[attr-defined]
        whole.sequence_parallel = sequence_parallel  # type: ignore[attr-defined]
        self.register_buffer("is_own", layout.row_owners(shard).to(weight), persistent=False)

    def forward(self, inputs_TBI: Tensor) -> Tensor:
        """Return what the adapters add, [T, B, rows], to the output for inputs [T, B, inputs]."""
        low_TBR = self._exchanged(F.linear(inputs_TBI, self.a) * self.scaling)
        return F.linear(low_TBR, self._blocks())

    def _exchanged(self, low_TBR: Tensor) -> Tensor:
        """Return A x as the rows of B on this rank need it, from what this rank computes of it."""
        exchange = {
            (False, False): tensor_parallel.copy_to_tensor_model_parallel_region,
            (False, True): tensor_parallel.gather_from_sequence_parallel_region,
            (True, False): tensor_parallel.reduce_from_tensor_model_parallel_region,
            (True, True): tensor_parallel.reduce_scatter_to_sequence_parallel_region,
        }[self.layout.is_row_parallel, self.sequence_parallel]
        exchanged: Tensor = exchange(low_TBR)
        return exchanged

    def delta(self) -> Tensor:
        """Return what this rank adds to its part of the weight, in float32."""
        return self.scaling * self._blocks().float() @ self.a.float()

    def _blocks(self) -> Tensor:
        """Return B with a block of columns for the A of each projection, [rows, rows of A]."""
        return (self.b[:, None] * self.is_own[:, :, None]).flatten(1)

    def sharded_state_dict(
        self,
        prefix: str = "",
        sharded_offsets: tuple[tuple[int, int, int], ...] = (),
        metadata: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Return what Megatron's checkpoints hold, such that another layout can load it."""
        split = {"a": 1} if self.layout.is_row_parallel else {"b": 0}
        state: dict[str, Any] = make_sharded_tensors_for_checkpoint(
            self.state_dict(keep_vars=True), prefix, split, sharded_offsets
        )
        if isinstance(self.layout.rule, GateAndUp):
            # A rank's rows are a part of the gate's and a part of the up projection's.
            rows = f"{prefix}b"
            state[rows] = apply_swiglu_sharded_factory(state[rows], sharded_offsets)
        return state


class AdaptedLinear(nn.Module):
    """A frozen linear layer of Megatron and its adapter."""

    def __init__(self, base: nn.Module, adapter: Adapter) -> None:
        super().__init__()
        self.base = base
        self.adapter = adapter
        self.is_on = True

    def forward(self, inputs_TBI: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the output with the adapter's share, and the bias that the caller adds."""
        output, bias = self.base(inputs_TBI)
        return (output + self.adapter(inputs_TBI) if self.is_on else output), bias

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """Return this rank's part of W + (alpha / rank) B A, rounded once to the type of W."""
        weight: Tensor = self.base.weight  # type: ignore[assignment]
        return (weight.float() + self.adapter.delta()).to(weight.dtype)

    def sharded_state_dict(
        self,
        prefix: str = "",
        sharded_offsets: tuple[tuple[int, int, int], ...] = (),
        metadata: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Return the adapter's; the frozen layer is part of no checkpoint."""
        return self.adapter.sharded_state_dict(f"{prefix}adapter.", sharded_offsets, metadata)


def add_adapters(model: PackedModel, config: LoRAConfig, *, seed: int) -> None:
    """Give the targets their adapters and freeze everything else but a head of scores.

    Called when the weights are loaded, and before the optimizer and the gradient buffers are made:
    these hold nothing of frozen weights. The model computes what it did until B is trained.
    """
    model.requires_grad_(False)
    head = getattr(model, "output_layer", None)
    if isinstance(head, RewardHead | AttributeHead):
        head.requires_grad_(True)
    rules = conversion_rules(model.architecture)
    for name, block, attribute in _linears(model):
        layout = AdapterLayout.of(rules[name], config)
        if layout.projections:
            base = getattr(block, attribute)
            adapter = Adapter(
                layout,
                config,
                base.weight,
                sequence_parallel=model.config.sequence_parallel,
                seed=seed,
            )
            setattr(block, attribute, AdaptedLinear(base, adapter))
    model.lora = config


def adapted_linears(model: PackedModel) -> dict[str, AdaptedLinear]:
    """Return this stage's adapted layers by the name of their weight in the conversion rules."""
    found = {name: getattr(block, attribute) for name, block, attribute in _linears(model)}
    return {name: linear for name, linear in found.items() if isinstance(linear, AdaptedLinear)}


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Make the model the one that its adapters were added to: the reference, without a copy.

    A reward head stays as it is trained.

    Raises:
        ValueError: The model has no adapters, so that it would be its own reference.
    """
    adapted = [module for module in model.modules() if isinstance(module, AdaptedLinear)]
    if not adapted:
        raise ValueError("the model has no adapters to turn off")
    before = [linear.is_on for linear in adapted]
    for linear in adapted:
        linear.is_on = False
    try:
        yield
    finally:
        for linear, was_on in zip(adapted, before, strict=True):
            linear.is_on = was_on


def _linears(model: PackedModel) -> Iterator[tuple[str, nn.Module, str]]:
    """Yield each linear layer's weight by its name in the rules, its parent and its name there."""
    for layer in model.decoder.layers:
        for path in _LINEARS:
            block, _, attribute = path.partition(".")
            name = f"decoder.layers.{layer.layer_number - 1}.{path}.weight"
            yield name, getattr(layer, block), attribute
