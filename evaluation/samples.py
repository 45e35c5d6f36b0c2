"""Answers to held-out prompts, for people to read and the reward model to score."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from alignflow.data_validation.canonical import read_split
from alignflow.errors import DataError
from alignflow.evaluation.measures import Items, Measure
from alignflow.evaluation.sharing import Passes
from alignflow.evaluation.suites.base import SuiteResult
from alignflow.evaluation.writing import Prompt, Prompts, batches
from alignflow.training.chat import ChatTokenizer, Message
from alignflow.training.megatron.inference import LanguageModel

_Judgement = TypeVar("_Judgement")


@dataclass(frozen=True)
class SampleAnswer:
    """What a model says to a prompt."""

    prompt: list[Message]
    answer: str
    num_tokens: int
    """Of the answer, with the one that ended it."""
    reward: float | None = None
    """In the scale of the reward model; None without one, or where there is nothing to score."""
    ratings: dict[str, float] | None = None
    """What the attribute model predicts of each attribute; None as above."""

    def to_json(self) -> dict[str, Any]:
        """Return the sample as a JSON object."""
        return asdict(self)


def choose_prompts(
    dataset: Path, chat: ChatTokenizer, *, number: int, max_length: int
) -> list[list[Message]]:
    """Return the first different held-out prompts of less than `max_length` tokens.

    Every model of a pipeline gets the same ones, so that their answers stand side by side.
    """
    prompts: list[list[Message]] = []
    for record in read_split(dataset, "held_out"):
        if len(prompts) == number:
            break
        if record["prompt"] not in prompts and _fits(chat, record["prompt"], max_length):
            prompts.append(record["prompt"])
    return prompts


def _fits(chat: ChatTokenizer, prompt: Sequence[Message], max_length: int) -> bool:
    try:
        return len(chat.prompt(prompt)) < max_length
    except DataError:  # the template can't hold it, so no pair is made of it either
        return False


def sample_prompts(
    chat: ChatTokenizer,
    prompts: Sequence[Sequence[Message]],
    *,
    max_new_tokens: int,
) -> Prompts:
    """Return conversations as the policy is given them, to be answered greedily."""
    rows = [
        Prompt(number, tuple(chat.prompt(prompt)), max_new_tokens)
        for number, prompt in enumerate(prompts)
    ]
    rows.sort(key=lambda row: -len(row.tokens))
    return Prompts(rows, chat.stop_tokens, num_truncated=0)


def answer_passes(
    prompts: Sequence[Prompt], *, policy: LanguageModel, chat: ChatTokenizer, max_tokens: int
) -> Passes:
    """Yield the answers to the next prompts, each with its length, and the tokens computed."""
    for batch in batches(prompts, max_tokens=max_tokens):
        answers = policy.generate(
            [prompt.tokens for prompt in batch],
            max_new_tokens=batch[0].max_new_tokens,
            stop_tokens=chat.stop_tokens,
        )
        num_tokens = sum(len(prompt.tokens) for prompt in batch) + sum(map(len, answers))
        yield [(chat.decode(answer), len(answer)) for answer in answers], num_tokens


def with_rewards(
    samples: Sequence[SampleAnswer],
    chat: ChatTokenizer,
    score: Callable[[list[list[int]]], Sequence[float]],
) -> list[SampleAnswer]:
    """Return the samples with the reward of each conversation that the template can hold.

    Args:
        samples: The answers.
        chat: Tokenizer and template.
        score: From conversations as tokens to their rewards.
    """
    return _judged(samples, chat, score, lambda sample, value: replace(sample, reward=value))


def with_ratings(
    samples: Sequence[SampleAnswer],
    chat: ChatTokenizer,
    rate: Callable[[list[list[int]]], Sequence[Sequence[float]]],
    names: Sequence[str],
) -> list[SampleAnswer]:
    """Return the samples with the ratings of each conversation that the template can hold.

    Args:
        samples: The answers.
        chat: Tokenizer and template.
        rate: From conversations as tokens to the values of each.
        names: What these are of.
    """
    return _judged(
        samples,
        chat,
        rate,
        lambda sample, values: replace(sample, ratings=dict(zip(names, values, strict=True))),
    )


def _judged(
    samples: Sequence[SampleAnswer],
    chat: ChatTokenizer,
    judge: Callable[[list[list[int]]], Sequence[_Judgement]],
    note: Callable[[SampleAnswer, _Judgement], SampleAnswer],
) -> list[SampleAnswer]:
    """Return the samples, with what a model says of those that the template can hold."""
    rows = [_row(chat, sample) for sample in samples]
    judgements = iter(judge([row for row in rows if row]))
    return [
        note(sample, next(judgements)) if row else sample
        for sample, row in zip(samples, rows, strict=True)
    ]


def _row(chat: ChatTokenizer, sample: SampleAnswer) -> list[int] | None:
    """Return the tokens of the conversation as in training, None where there is no answer."""
    answer = {"role": "assistant", "content": sample.answer}
    try:
        (row,) = chat.tokenize([chat.render([*sample.prompt, answer], learn="last_turn")])
    except DataError:
        return None
    return [int(token) for token in row.tokens_T]


def sample_result(samples: Sequence[SampleAnswer]) -> SuiteResult:
    """Return `mean_reward`, of the answers that have one, and `mean_tokens`, of all."""
    scored = [(sample, sample.reward) for sample in samples if sample.reward is not None]
    return SuiteResult(
        measures={
            "mean_reward": Measure.mean(
                _prompts([sample for sample, _ in scored]), [reward for _, reward in scored]
            ),
            "mean_tokens": Measure.mean(
                _prompts(samples), [sample.num_tokens for sample in samples]
            ),
        },
        items=[],
    )


def rating_result(samples: Sequence[SampleAnswer], attributes: Sequence[str]) -> SuiteResult:
    """Return a score for each attribute: its mean over the answers that are rated."""
    rated = [(sample, sample.ratings) for sample in samples if sample.ratings is not None]
    prompts = _prompts([sample for sample, _ in rated])
    return SuiteResult(
        measures={
            name: Measure.mean(prompts, [ratings[name] for _, ratings in rated])
            for name in attributes
        },
        items=[],
    )


def _prompts(samples: Sequence[SampleAnswer]) -> Items:
    return Items.of(sample.prompt for sample in samples)
