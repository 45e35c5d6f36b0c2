"""Log-probabilities of a suite's choices, tokenised as lm-evaluation-harness does it."""

from collections.abc import Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from alignflow.errors import DataError
from alignflow.evaluation.suites.base import ChoiceRequest
from alignflow.training.megatron.trees import Branch, Tree

_BATCH_REQUESTS = 256


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
        tokenizer: Of the model; of the special tokens that it adds by itself only the one that
            begins a sequence is added, for one that ends it would stand after every choice.
        requests: Contexts and choices.
        max_length: Most tokens of a context with its longest choice.

    Raises:
        DataError: A choice adds no token to its context.
    """
    beginning = beginning_tokens(tokenizer)
    trees = []
    num_truncated = 0
    for start in range(0, len(requests), _BATCH_REQUESTS):
        batch = requests[start : start + _BATCH_REQUESTS]
        contexts = _encode(tokenizer, [request.context for request in batch])
        wholes = iter(
            _encode(tokenizer, [r.context + choice for r in batch for choice in r.choices])
        )
        for item, (request, context) in enumerate(zip(batch, contexts, strict=True), start + 1):
            choices = [next(wholes)[len(context) :] for _ in request.choices]
            if not all(choices):
                empty = request.choices[choices.index([])]
                raise DataError(f"item {item}: the choice {empty!r} adds no token to its context.")
            room = max_length - max(map(len, choices))
            num_truncated += len(beginning) + len(context) > room
            kept = [*beginning, *context][-max(room, 1) :]
            branches = [Branch.scored(choice[: max_length - 1]) for choice in choices]
            trees.append(Tree(kept, branches))
    return Encoded(trees, num_truncated)


def beginning_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the token that the tokenizer puts before a text by itself, if it does."""
    ids = tokenizer("a", verbose=False)["input_ids"]
    bare = tokenizer("a", add_special_tokens=False, verbose=False)["input_ids"]
    is_added = ids[0] == tokenizer.bos_token_id and ids[: len(bare)] != bare
    return ids[:1] if is_added else []


def _encode(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    encoded: list[list[int]] = tokenizer(
        texts, add_special_tokens=False, return_attention_mask=False, verbose=False
    )["input_ids"]
    return encoded
