"""Log-probabilities of a suite's choices, tokenised as lm-evaluation-harness does it."""

from collections.abc import Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from alignflow.evaluation.suites.base import ChoiceRequest
from alignflow.training.megatron.trees import Branch, Tree


class Encoded(NamedTuple):
    """Requests as tokens."""

    trees: list[Tree]
    num_truncated: int
    """Requests that were longer than allowed."""


def encode_requests(
    tokenizer: PreTrainedTokenizerBase, requests: Sequence[ChoiceRequest], *, max_length: int
) -> Encoded:
    """Return a tree a request, its branches in the order of the choices.

    As in the harness, context and choice are tokenised together and cut where the context alone
    ends, and of what is too long the beginning of the context goes first.

    Args:
        tokenizer: Of the model; it adds the special tokens that it adds by itself.
        requests: Contexts and choices.
        max_length: Most tokens of a context with its longest choice.
    """
    contexts = _encode(tokenizer, [request.context for request in requests])
    wholes = iter(
        _encode(tokenizer, [r.context + choice for r in requests for choice in r.choices])
    )
    trees = []
    num_truncated = 0
    for request, context in zip(requests, contexts, strict=True):
        choices = [next(wholes)[len(context) :] for _ in request.choices]
        room = max_length - max(map(len, choices))
        num_truncated += len(context) > room
        kept = context[-max(room, 1) :]
        trees.append(Tree(kept, [Branch.scored(choice[: max_length - 1]) for choice in choices]))
    return Encoded(trees, num_truncated)


def _encode(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    encoded: list[list[int]] = tokenizer(texts, return_attention_mask=False, verbose=False)[
        "input_ids"
    ]
    return encoded
