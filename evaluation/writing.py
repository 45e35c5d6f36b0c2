"""What a model writes for the suites of generation, in batches of prompts of a like length."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from alignflow.evaluation.choices import beginning_tokens
from alignflow.evaluation.config import EvaluationConfig
from alignflow.training.chat import ChatTokenizer, Message
from alignflow.training.megatron.frozen import Progress
from alignflow.training.megatron.inference import LanguageModel
from alignflow.training.sampling import Sampling, uniforms

_Write = Callable[[list[list[int]], list[int]], list[list[int]]]
"""From prompts, and their numbers among all, to answers."""


@dataclass(frozen=True)
class Written:
    """What a model wrote, an answer a prompt."""

    answers: list[str]
    num_truncated: int
    """Prompts that were longer than allowed, and lost their beginning."""


def continue_texts(
    policy: LanguageModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    config: EvaluationConfig,
    progress: Progress,
) -> Written:
    """Return how the model goes on with each text, up to the end of the line.

    Tokens are drawn; what is drawn follows from the seed and the text's number alone.
    """
    settings = config.generation
    beginning = beginning_tokens(tokenizer)
    encoded = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    sampling = Sampling(temperature=settings.temperature, top_p=settings.top_p)
    stop_tokens = (_line_ends(tokenizer) | {tokenizer.eos_token_id}) - {None}

    def draw(prompts: list[list[int]], numbers: list[int]) -> list[list[int]]:
        uniforms_BT = torch.stack(
            [uniforms((settings.seed, number), settings.max_new_tokens) for number in numbers]
        )
        drawn = policy.sample(prompts, uniforms_BT, sampling=sampling, stop_tokens=stop_tokens)
        return [answer.tokens for answer in drawn]

    tokens, num_truncated = _in_batches(
        [[*beginning, *ids] for ids in encoded], draw, config, progress
    )
    lines = [tokenizer.decode(row, skip_special_tokens=True).partition("\n")[0] for row in tokens]
    return Written([line.strip() for line in lines], num_truncated)


def answer_conversations(
    policy: LanguageModel,
    chat: ChatTokenizer,
    conversations: Sequence[Sequence[Message]],
    config: EvaluationConfig,
    progress: Progress,
) -> Written:
    """Return the likeliest answer to each conversation."""

    def answer(prompts: list[list[int]], _: list[int]) -> list[list[int]]:
        return policy.generate(
            prompts,
            max_new_tokens=config.generation.max_new_tokens,
            stop_tokens=chat.stop_tokens,
        )

    prompts = [chat.prompt(messages) for messages in conversations]
    tokens, num_truncated = _in_batches(prompts, answer, config, progress)
    return Written([chat.decode(row) for row in tokens], num_truncated)


def batches(lengths: Sequence[int], *, max_tokens: int) -> Iterator[list[int]]:
    """Yield rows, longest first, as many at a time as fit when all are as long as the longest.

    A row that is too long by itself is a batch.
    """
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    while order:
        size = max(1, max_tokens // lengths[order[0]])
        yield order[:size]
        order = order[size:]


def _in_batches(
    prompts: Sequence[list[int]], write: _Write, config: EvaluationConfig, progress: Progress
) -> tuple[list[list[int]], int]:
    """Return the answers in the prompts' order, and how many prompts were cut."""
    kept = [prompt[-config.max_length :] for prompt in prompts]
    answers: list[list[int]] = [[] for _ in prompts]
    lengths = [len(prompt) + config.generation.max_new_tokens for prompt in kept]
    for rows in batches(lengths, max_tokens=config.microbatch_tokens):
        written = write([kept[row] for row in rows], rows)
        for row, tokens in zip(rows, written, strict=True):
            answers[row] = tokens
        progress(len(rows), sum(len(kept[row]) + len(answers[row]) for row in rows))
    return answers, sum(len(prompt) > config.max_length for prompt in prompts)


def _line_ends(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the tokens that hold a line end."""
    texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
    return {token for token, text in enumerate(texts) if "\n" in text}
