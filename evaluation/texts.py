"""Greedy answers to a suite's prompts."""

from collections.abc import Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from alignflow.evaluation.choices import encode, first_token
from alignflow.evaluation.sharing import Passes
from alignflow.evaluation.suites.base import TextRequest
from alignflow.training.megatron.inference import LanguageModel

# Prompts that decode together, and are kept together: few enough that little is lost.
_BATCH = 32


class Prompt(NamedTuple):
    """A request as tokens."""

    tokens: tuple[int, ...]
    max_new_tokens: int
    stops: tuple[str, ...]


class EncodedPrompts(NamedTuple):
    """Requests as tokens."""

    prompts: list[Prompt]
    num_truncated: int
    """Requests that were longer than allowed."""


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, requests: Sequence[TextRequest], *, max_length: int
) -> EncodedPrompts:
    """Return the prompts; those that are too long lose their beginning.

    Args:
        tokenizer: Of the model.
        requests: What is to be answered.
        max_length: Most tokens of a prompt with its answer.
    """
    beginning = first_token(tokenizer)
    prompts = []
    num_truncated = 0
    for request, tokens in zip(
        requests, encode(tokenizer, [request.prompt for request in requests]), strict=True
    ):
        room = max(max_length - request.max_new_tokens, 1)
        num_truncated += len(beginning) + len(tokens) > room
        kept = [*beginning, *tokens][-room:]
        prompts.append(Prompt(tuple(kept), request.max_new_tokens, request.stops))
    return EncodedPrompts(prompts, num_truncated)


def text_passes(
    policy: LanguageModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt]
) -> Passes:
    """Yield the greedy answers to the next prompts, and the tokens written for them.

    An answer ends before the first of its stops, with the token that ends texts, or at its longest.
    """
    for start in range(0, len(prompts), _BATCH):
        batch = prompts[start : start + _BATCH]
        written = policy.generate(
            [prompt.tokens for prompt in batch],
            max_new_tokens=max(prompt.max_new_tokens for prompt in batch),
            stop_tokens={tokenizer.eos_token_id},
        )
        texts = [
            _text(tokenizer, tokens[: prompt.max_new_tokens], prompt.stops)
            for tokens, prompt in zip(written, batch, strict=True)
        ]
        yield texts, sum(map(len, written))


def _text(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], stops: Sequence[str]) -> str:
    text = str(tokenizer.decode(tokens, skip_special_tokens=True))
    for stop in stops:
        text = text.partition(stop)[0]
    return text
