"""Floating-point operations of a model of the Llama family, counted from shapes and lengths.

A product of an [m, k] and a [k, n] matrix is 2mkn operations. Counted are matrix products alone: of
the linear layers, of attention, and of the LM head. Norms, activations, rotary embeddings and the
optimizer are not, nor is what is computed again to save memory: it is the work that the step needs,
as in the model FLOPs of arXiv:2204.02311, appendix B.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from alignflow.training.batch import PackedBatch
from alignflow.training.config import LoRAConfig
from alignflow.training.megatron.architecture import Architecture

_BACKWARD_TO_INPUTS = 1
_BACKWARD_TO_WEIGHTS = 1


@dataclass(frozen=True)
class Work:
    """What a pass goes over."""

    num_tokens: int
    """Tokens that the linear layers compute, those that rows share counted once."""
    row_lengths: tuple[int, ...]
    """Tokens of each row, shared ones included: a query attends within its row."""
    num_scored: int
    """Positions whose logits are computed; 0 with a head of scores, whose work is not counted."""

    @classmethod
    def of(cls, batch: PackedBatch) -> "Work":
        """Return what a pass over a packed batch of a language model is."""
        lengths = batch.row_starts_R1.diff().tolist()
        return cls(batch.num_tokens, tuple(lengths), batch.targets_N.numel())


def num_parameters(architecture: Architecture) -> int:
    """Return the weights of a language model, norms and embeddings included."""
    a = architecture
    norms = (2 * a.num_layers + 1) * a.hidden_size + 2 * a.num_layers * a.head_dim * a.has_qk_norm
    biases = a.num_layers * a.head_dim * (a.num_heads + 2 * a.num_kv_heads) * a.has_qkv_bias
    embeddings = (1 if a.has_tied_embeddings else 2) * a.vocab_size * a.hidden_size
    return _linear_weights(a) + norms + biases + embeddings


def forward_flops(architecture: Architecture, work: Work) -> int:
    """Return the operations of a forward pass."""
    linear = 2 * work.num_tokens * _linear_weights(architecture)
    return linear + _attention_flops(architecture, work) + _head_flops(architecture, work)


def training_flops(architecture: Architecture, work: Work, lora: LoRAConfig | None = None) -> int:
    """Return the operations of a forward and a backward pass.

    The backward pass takes two products for each one: the gradient of the input and that of the
    weight. Beside adapters the model's own weights have none, whereas the two operands of attention
    have one each.
    """
    forward = forward_flops(architecture, work)
    if lora is None:
        return (1 + _BACKWARD_TO_INPUTS + _BACKWARD_TO_WEIGHTS) * forward
    frozen = (1 + _BACKWARD_TO_INPUTS) * forward
    attention = _BACKWARD_TO_WEIGHTS * _attention_flops(architecture, work)
    adapters = 3 * 2 * work.num_tokens * num_adapter_weights(architecture, lora)
    return frozen + attention + adapters


def decoding_flops(architecture: Architecture, lengths: Iterable[tuple[int, int]]) -> int:
    """Return the operations of answering prompts with a cache of keys and values.

    Args:
        architecture: The model.
        lengths: Tokens of each prompt and of its answer. Each of the answer's tokens takes the
            logits of one position, and each but the last is computed itself.
    """
    lengths = list(lengths)
    work = Work(
        num_tokens=sum(prompt + answer - 1 for prompt, answer in lengths),
        row_lengths=tuple(prompt + answer - 1 for prompt, answer in lengths),
        num_scored=sum(answer for _, answer in lengths),
    )
    return forward_flops(architecture, work)


def rollout_flops(
    architecture: Architecture,
    lengths: Iterable[tuple[int, int]],
    *,
    epochs: int,
    lora: LoRAConfig | None = None,
) -> int:
    """Return the operations of a step of PPO, with a model of the same shape in every part.

    The actor answers; the reward model, the actor again, the reference and the critic read the
    answers; then actor and critic learn from them, so many times over.

    Args:
        architecture: The shape.
        lengths: Tokens of each prompt and of its answer.
        epochs: Passes over the rollout.
        lora: The adapters that actor and critic train.
    """
    lengths = list(lengths)
    rows = tuple(prompt + answer for prompt, answer in lengths)
    scored = Work(sum(rows), rows, num_scored=sum(answer for _, answer in lengths))
    unscored = replace(scored, num_scored=0)
    read = 2 * forward_flops(architecture, scored) + 2 * forward_flops(architecture, unscored)
    learnt = sum(training_flops(architecture, work, lora) for work in (scored, unscored))
    return decoding_flops(architecture, lengths) + read + epochs * learnt


def num_adapter_weights(architecture: Architecture, lora: LoRAConfig) -> int:
    """Return the weights of the adapters."""
    sides = (sum(_linear_shapes(architecture)[name]) for name in lora.targets)
    return architecture.num_layers * lora.rank * sum(sides)


def _linear_shapes(a: Architecture) -> dict[str, tuple[int, int]]:
    """Return inputs and outputs of the linear layers of a block, by their Hugging Face names."""
    queries, keys = a.num_heads * a.head_dim, a.num_kv_heads * a.head_dim
    return {
        "q_proj": (a.hidden_size, queries),
        "k_proj": (a.hidden_size, keys),
        "v_proj": (a.hidden_size, keys),
        "o_proj": (queries, a.hidden_size),
        "gate_proj": (a.hidden_size, a.ffn_hidden_size),
        "up_proj": (a.hidden_size, a.ffn_hidden_size),
        "down_proj": (a.ffn_hidden_size, a.hidden_size),
    }


def _linear_weights(a: Architecture) -> int:
    return a.num_layers * sum(rows * columns for rows, columns in _linear_shapes(a).values())


def _attention_flops(a: Architecture, work: Work) -> int:
    """Return the operations of scores and of attended values: each query meets the keys it sees."""
    window = a.sliding_window
    num_met = sum(_num_met(length, window) for length in work.row_lengths)
    return 2 * 2 * a.num_layers * a.num_heads * a.head_dim * num_met


def _num_met(length: int, window: int | None) -> int:
    """Return how many pairs of a query and a key a causal row has."""
    seen = length if window is None else min(length, window)
    return seen * (seen + 1) // 2 + (length - seen) * seen


def _head_flops(a: Architecture, work: Work) -> int:
    return 2 * work.num_scored * a.hidden_size * a.vocab_size
