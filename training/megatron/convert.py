"""Hugging Face names and layouts against Megatron's: one table, read in both directions.

Each rule of the table makes one Megatron parameter, as one tensor-parallel rank holds it, out of
Hugging Face tensors, and makes those tensors again out of the parts of all ranks. Nothing is
computed, only cut and put together, so that a round trip is exact bit for bit.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from alignflow.errors import DataError
from alignflow.training.megatron.architecture import Architecture
from alignflow.training.megatron.weights import Weights

Shapes = dict[str, tuple[int, ...]]

# Transformer Engine keeps the norm before a linear layer inside that layer.
_FUSED_NAMES = {
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "mlp.linear_fc1.layer_norm_weight": "pre_mlp_layernorm.weight",
}


@dataclass(frozen=True)
class Shard:
    """Which part of a parameter a tensor-parallel rank holds."""

    rank: int
    size: int

    def of(self, length: int) -> slice:
        """Return this rank's equal share of a dimension."""
        share = length // self.size
        return slice(self.rank * share, (self.rank + 1) * share)


class Source(Protocol):
    """Where a rule finds Hugging Face tensors; `Weights` of a folder is one."""

    def read(
        self,
        name: str,
        shape: tuple[int, ...],
        *,
        rows: slice | None = None,
        columns: slice | None = None,
    ) -> Tensor:
        """Return a tensor, or some of its rows or columns."""


class Rule(Protocol):
    """How one Megatron parameter and its Hugging Face tensors become each other."""

    @property
    def shapes(self) -> Shapes:
        """Hugging Face names and shapes."""

    def read(self, weights: Source, shard: Shard) -> Tensor:
        """Return the part of the Megatron parameter that a rank holds."""

    def write(self, parts: list[Tensor]) -> dict[str, Tensor]:
        """Return the Hugging Face tensors, given the parts in the order of ranks."""


@dataclass(frozen=True)
class Whole:
    """The same tensor on every rank."""

    name: str
    shape: tuple[int, ...]

    @property
    def shapes(self) -> Shapes:
        """See `Rule`."""
        return {self.name: self.shape}

    def read(self, weights: Source, shard: Shard) -> Tensor:
        """See `Rule`."""
        return weights.read(self.name, self.shape)

    def write(self, parts: list[Tensor]) -> dict[str, Tensor]:
        """See `Rule`."""
        return {self.name: parts[0]}


@dataclass(frozen=True)
class VocabRows:
    """Rows split over the ranks; zero rows fill the vocabulary up to a multiple of the ranks."""

    name: str
    shape: tuple[int, int]

    @property
    def shapes(self) -> Shapes:
        """See `Rule`."""
        return {self.name: self.shape}

    def read(self, weights: Source, shard: Shard) -> Tensor:
        """See `Rule`."""
        vocab_size = self.shape[0]
        wanted = shard.of(padded_vocab_size(vocab_size, shard.size))
        held = slice(min(wanted.start, vocab_size), min(wanted.stop, vocab_size))
        rows = weights.read(self.name, self.shape, rows=held)
        missing = wanted.stop - wanted.start - rows.size(0)
        return torch.cat([rows, rows.new_zeros(missing, self.shape[1])]) if missing else rows

    def write(self, parts: list[Tensor]) -> dict[str, Tensor]:
        """See `Rule`."""
        return {self.name: torch.cat(parts)[: self.shape[0]]}


@dataclass(frozen=True)
class Columns:
    """Columns split over the ranks: the input side of a row-parallel layer."""

    name: str
    shape: tuple[int, int]

    @property
    def shapes(self) -> Shapes:
        """See `Rule`."""
        return {self.name: self.shape}

    def read(self, weights: Source, shard: Shard) -> Tensor:
        """See `Rule`."""
        return weights.read(self.name, self.shape, columns=shard.of(self.shape[1]))

    def write(self, parts: list[Tensor]) -> dict[str, Tensor]:
        """See `Rule`."""
        return {self.name: torch.cat(parts, dim=1)}


@dataclass(frozen=True)
class GateAndUp:
    """Each rank's rows of the gate, then its rows of the up projection."""

    gate: str
    up: str
    shape: tuple[int, int]

    @property
    def shapes(self) -> Shapes:
        """See `Rule`."""
        return {self.gate: self.shape, self.up: self.shape}

    def read(self, weights: Source, shard: Shard) -> Tensor:
        """See `Rule`."""
        rows = shard.of(self.shape[0])
        return torch.cat([weights.read(name, self.shape, rows=rows) for name in self.shapes])

    def write(self, parts: list[Tensor]) -> dict[str, Tensor]:
        """See `Rule`."""
        halves = [part.chunk(2) for part in parts]
        return {name: torch.cat([h[i] for h in halves]) for i, name in enumerate(self.shapes)}


@dataclass(frozen=True)
class GroupedQKV:
    """Query heads of a group, then its key and its value head, group after group.

    Ranks share the rows evenly. With fewer groups than ranks a group is spread over several.
    """

    prefix: str
    suffix: str
    num_groups: int
    queries_per_group: int
    head_dim: int
    width: tuple[int, ...]
    """Trailing shape: the hidden size of a weight, nothing for a bias."""

    @property
    def shapes(self) -> Shapes:
        """See `Rule`."""
        return {
            f"{self.prefix}.{name}_proj.{self.suffix}": (self.num_groups * rows, *self.width)
            for name, rows in self._rows_of_group.items()
        }

    @property
    def _rows_of_group(self) -> dict[str, int]:
        return {
            "q": self.queries_per_group * self.head_dim,
            "k": self.head_dim,
            "v": self.head_dim,
        }

    def read(self, weights: Source, shard: Shard) -> Tensor:
        """See `Rule`."""
        group_rows = sum(self._rows_of_group.values())
        wanted = shard.of(self.num_groups * group_rows)
        first, last = wanted.start // group_rows, (wanted.stop - 1) // group_rows + 1
        grouped = [
            weights.read(name, shape, rows=slice(first * rows, last * rows)).reshape(
                last - first, rows, *self.width
            )
            for (name, shape), rows in zip(
                self.shapes.items(), self._rows_of_group.values(), strict=True
            )
        ]
        offset = first * group_rows
        return torch.cat(grouped, dim=1).flatten(0, 1)[wanted.start - offset : wanted.stop - offset]

    def write(self, parts: list[Tensor]) -> dict[str, Tensor]:
        """See `Rule`."""
        grouped = torch.cat(parts).reshape(self.num_groups, -1, *self.width)
        split = torch.split(grouped, list(self._rows_of_group.values()), dim=1)
        return {name: part.flatten(0, 1) for name, part in zip(self.shapes, split, strict=True)}


def conversion_rules(architecture: Architecture) -> dict[str, Rule]:
    """Return the rule of each Megatron parameter of the whole language model, in model order."""
    a = architecture
    vocab = (a.vocab_size, a.hidden_size)
    head = "model.embed_tokens.weight" if a.has_tied_embeddings else "lm_head.weight"
    rules: dict[str, Rule] = {
        "embedding.word_embeddings.weight": VocabRows("model.embed_tokens.weight", vocab)
    }
    for layer in range(a.num_layers):
        for name, rule in _layer_rules(a, f"model.layers.{layer}").items():
            rules[f"decoder.layers.{layer}.{name}"] = rule
    rules["decoder.final_layernorm.weight"] = Whole("model.norm.weight", (a.hidden_size,))
    rules["output_layer.weight"] = VocabRows(head, vocab)
    return rules


def _layer_rules(a: Architecture, layer: str) -> dict[str, Rule]:
    hidden, ffn = a.hidden_size, a.ffn_hidden_size
    attention, mlp = f"{layer}.self_attn", f"{layer}.mlp"

    def qkv(suffix: str, width: tuple[int, ...]) -> GroupedQKV:
        queries = a.num_heads // a.num_kv_heads
        return GroupedQKV(attention, suffix, a.num_kv_heads, queries, a.head_dim, width)

    rules: dict[str, Rule] = {
        "input_layernorm.weight": Whole(f"{layer}.input_layernorm.weight", (hidden,)),
        "self_attention.linear_qkv.weight": qkv("weight", (hidden,)),
        "self_attention.linear_proj.weight": Columns(
            f"{attention}.o_proj.weight", (hidden, a.num_heads * a.head_dim)
        ),
        "pre_mlp_layernorm.weight": Whole(f"{layer}.post_attention_layernorm.weight", (hidden,)),
        "mlp.linear_fc1.weight": GateAndUp(
            f"{mlp}.gate_proj.weight", f"{mlp}.up_proj.weight", (ffn, hidden)
        ),
        "mlp.linear_fc2.weight": Columns(f"{mlp}.down_proj.weight", (hidden, ffn)),
    }
    if a.has_qkv_bias:
        rules["self_attention.linear_qkv.bias"] = qkv("bias", ())
    if a.has_qk_norm:
        for name in "qk":
            rules[f"self_attention.{name}_layernorm.weight"] = Whole(
                f"{attention}.{name}_norm.weight", (a.head_dim,)
            )
    return rules


def canonical_name(name: str, first_layer: int) -> str:
    """Return the table's name of a parameter that a pipeline stage calls by this name.

    An adapted layer calls its own weights `base.weight` and so on.

    Args:
        name: Name within the stage, which counts its layers from 0.
        first_layer: Number of the stage's first layer in the whole model.
    """
    prefix, layers, rest = name.partition("decoder.layers.")
    if not layers:
        return name
    layer, _, tail = rest.replace(".base.", ".").partition(".")
    return f"{prefix}{layers}{int(layer) + first_layer}.{_FUSED_NAMES.get(tail, tail)}"


def check_names(weights: Weights, architecture: Architecture) -> None:
    """Refuse weights with a tensor too few or too many.

    Raises:
        DataError: A tensor is missing, or one has no place in the model.
    """
    rules = conversion_rules(architecture).values()
    expected = {name for rule in rules for name in rule.shapes}
    # Old exports also hold the rotary frequencies, and some a copy of tied embeddings.
    found = {name for name in weights.names if not name.endswith("rotary_emb.inv_freq")}
    if architecture.has_tied_embeddings:
        found.discard("lm_head.weight")
    for problem, names in (("lack", expected - found), ("hold unknown", found - expected)):
        if names:
            first, *others = sorted(names)
            more = f" and {len(others)} more" if others else ""
            raise DataError(f"{weights.folder}: the weights {problem} {first}{more}.")


def padded_vocab_size(vocab_size: int, tensor_parallel_size: int) -> int:
    """Return the vocabulary size rounded up to a multiple of the tensor-parallel size."""
    return -(-vocab_size // tensor_parallel_size) * tensor_parallel_size
