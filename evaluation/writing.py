"""What a model writes for the suites that ask for texts, in batches of prompts of a like length."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from transformers import PreTrainedTokenizerBase

from alignflow.evaluation.choices import beginning_tokens, encode
from alignflow.evaluation.config import EvaluationConfig
from alignflow.evaluation.sharing import Passes
from alignflow.evaluation.suites.base import ChatRequest, TextRequest
from alignflow.training.chat import ChatTokenizer
from alignflow.training.megatron.inference import LanguageModel
from alignflow.training.sampling import Sampling, uniforms
from alignflow.training.steering import Steering
from alignflow.training.tokenizer import load_tokenizer

AnswerT = TypeVar("AnswerT")


class Prompt(NamedTuple):
    """A request as tokens."""

    number: int
    """Of the request among all; what is drawn follows from it and the seed."""
    tokens: tuple[int, ...]
    max_new_tokens: int
    stops: tuple[str, ...] = ()
    is_drawn: bool = False


@dataclass(frozen=True)
class Prompts:
    """Requests as tokens."""

    prompts: list[Prompt]
    """The longest first, so that those of a like length are written together."""
    stop_tokens: frozenset[int]
    """Tokens that end an answer."""
    num_truncated: int
    """Requests that were longer than allowed, and lost their beginning."""

    def in_order(self, answers: Sequence[AnswerT]) -> list[AnswerT]:
        """Return answers to the prompts in the order of the requests."""
        by_number = {
            prompt.number: answer for prompt, answer in zip(self.prompts, answers, strict=True)
        }
        return [by_number[number] for number in range(len(by_number))]


class Writer:
    """A model that goes on with texts and answers conversations."""

    def __init__(
        self,
        policy: LanguageModel,
        model: Path,
        config: EvaluationConfig,
        *,
        steering: Steering | None = None,
    ) -> None:
        """Take the model.

        Args:
            policy: The model.
            model: Its folder, with the tokenizer and the chat template.
            config: Lengths, and how to draw.
            steering: What it is asked for in conversations, where it is one of SteerLM's.
        """
        self._policy, self._model, self._config = policy, model, config
        self._tokenizer = load_tokenizer(model)
        self._steering = steering

    def encode(self, requests: Sequence[TextRequest | ChatRequest]) -> Prompts:
        """Return requests of one kind as prompts.

        A prompt with its longest answer has at most the config's `max_length` tokens; of one that
        is too long the beginning goes.
        """
        texts = [request for request in requests if isinstance(request, TextRequest)]
        if texts:
            return self._of_texts(texts)
        chat = ChatTokenizer.load(self._model)
        ask = self._steering.prompt if self._steering is not None else list
        max_new_tokens = self._config.generation.max_new_tokens
        whole = [
            Prompt(number, tuple(chat.prompt(ask(request.messages))), max_new_tokens)
            for number, request in enumerate(requests)
            if isinstance(request, ChatRequest)
        ]
        return self._cut(whole, chat.stop_tokens)

    def _of_texts(self, texts: Sequence[TextRequest]) -> Prompts:
        beginning = beginning_tokens(self._tokenizer)
        tokens = encode(self._tokenizer, [request.prompt for request in texts])
        whole = [
            Prompt(
                number,
                (*beginning, *ids),
                request.max_new_tokens or self._config.generation.max_new_tokens,
                request.stops,
                request.is_drawn,
            )
            for number, (request, ids) in enumerate(zip(texts, tokens, strict=True))
        ]
        shared = set(texts[0].stops).intersection(*(request.stops for request in texts))
        ends = _tokens_with(self._tokenizer, shared) | {self._tokenizer.eos_token_id}
        return self._cut(whole, frozenset(ends - {None}))

    def _cut(self, whole: Sequence[Prompt], stop_tokens: frozenset[int]) -> Prompts:
        rooms = [max(self._config.max_length - prompt.max_new_tokens, 1) for prompt in whole]
        cut = [
            prompt._replace(tokens=prompt.tokens[-room:])
            for prompt, room in zip(whole, rooms, strict=True)
        ]
        cut.sort(key=lambda prompt: -len(prompt.tokens))
        num_truncated = sum(
            len(prompt.tokens) > room for prompt, room in zip(whole, rooms, strict=True)
        )
        return Prompts(cut, stop_tokens, num_truncated)

    def passes(self, prompts: Sequence[Prompt], *, stop_tokens: frozenset[int]) -> Passes:
        """Yield the answers to the next prompts, and the tokens computed for them.

        An answer ends before the first of its stops, with a stop token, or at its longest.
        """
        for batch in batches(prompts, max_tokens=self._config.microbatch_tokens):
            write = self._draw if batch[0].is_drawn else self._likeliest
            written = write(batch, stop_tokens)
            texts = [
                self._text(tokens[: prompt.max_new_tokens], prompt.stops)
                for tokens, prompt in zip(written, batch, strict=True)
            ]
            num_tokens = sum(len(prompt.tokens) for prompt in batch) + sum(map(len, written))
            yield texts, num_tokens

    def _likeliest(self, batch: Sequence[Prompt], stop_tokens: frozenset[int]) -> list[list[int]]:
        return self._policy.generate(
            [prompt.tokens for prompt in batch],
            max_new_tokens=max(prompt.max_new_tokens for prompt in batch),
            stop_tokens=stop_tokens,
        )

    def _draw(self, batch: Sequence[Prompt], stop_tokens: frozenset[int]) -> list[list[int]]:
        settings = self._config.generation
        max_new_tokens = max(prompt.max_new_tokens for prompt in batch)
        uniforms_BT = torch.stack(
            [uniforms((settings.seed, prompt.number), max_new_tokens) for prompt in batch]
        )
        drawn = self._policy.sample(
            [prompt.tokens for prompt in batch],
            uniforms_BT,
            sampling=Sampling(temperature=settings.temperature, top_p=settings.top_p),
            stop_tokens=stop_tokens,
        )
        return [answer.tokens for answer in drawn]

    def _text(self, tokens: Sequence[int], stops: Sequence[str]) -> str:
        text = str(self._tokenizer.decode(tokens, skip_special_tokens=True))
        for stop in stops:
            text = text.partition(stop)[0]
        return text


def batches(prompts: Sequence[Prompt], *, max_tokens: int) -> Iterator[list[Prompt]]:
    """Yield the next prompts, as many as fit when all are as long as the first of them.

    A prompt that is too long by itself is a batch. What is drawn and what isn't are no batch.
    """
    for _, alike in groupby(prompts, key=lambda prompt: prompt.is_drawn):
        left = list(alike)
        while left:
            size = max(1, max_tokens // (len(left[0].tokens) + left[0].max_new_tokens))
            yield left[:size]
            left = left[size:]


def _tokens_with(tokenizer: PreTrainedTokenizerBase, stops: Collection[str]) -> set[int]:
    """Return the tokens that hold one of some texts."""
    texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
    return {token for token, text in enumerate(texts) if any(stop in text for stop in stops)}
