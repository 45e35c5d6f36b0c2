"""Answers to held-out prompts, for people to read and the reward model to score."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from alignflow.data_validation.canonical import read_split
from alignflow.errors import DataError
from alignflow.evaluation.measures import Items, Measure
from alignflow.evaluation.suites.base import SuiteResult
from alignflow.training.chat import ChatTokenizer, Message
from alignflow.training.megatron.frozen import Progress
from alignflow.training.megatron.inference import LanguageModel
from alignflow.training.megatron.judges import AttributeModel, RewardModel

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


def answer_prompts(
    policy: LanguageModel,
    chat: ChatTokenizer,
    prompts: Sequence[list[Message]],
    *,
    max_new_tokens: int,
    progress: Progress,
    ask: Callable[[Sequence[Message]], Sequence[Message]] = list,
) -> list[SampleAnswer]:
    """Return the greedy answers; progress is told of them as they come.

    Args:
        policy: Who answers.
        chat: Its tokenizer and template.
        prompts: What is answered.
        max_new_tokens: Most tokens of an answer.
        progress: See `LanguageModel.generate`.
        ask: From a prompt to what the policy is given, such as `Steering.prompt`.
    """
    answers = policy.generate(
        [chat.prompt(ask(prompt)) for prompt in prompts],
        max_new_tokens=max_new_tokens,
        stop_tokens=chat.stop_tokens,
        progress=progress,
    )
    return [
        SampleAnswer(prompt, chat.decode(answer), len(answer))
        for prompt, answer in zip(prompts, answers, strict=True)
    ]


def with_rewards(
    reward: RewardModel,
    chat: ChatTokenizer,
    samples: Sequence[SampleAnswer],
    *,
    max_tokens: int,
    progress: Progress | None = None,
) -> list[SampleAnswer]:
    """Return the samples with the reward of each conversation that the template can hold."""
    score = partial(reward.score_rows, max_tokens=max_tokens, progress=progress)
    return _judged(chat, samples, score, lambda sample, value: replace(sample, reward=value))


def with_ratings(
    attributes: AttributeModel,
    chat: ChatTokenizer,
    samples: Sequence[SampleAnswer],
    *,
    max_tokens: int,
    progress: Progress | None = None,
) -> list[SampleAnswer]:
    """Return the samples with the ratings of each conversation that the template can hold."""
    rate = partial(attributes.rate, max_tokens=max_tokens, progress=progress)
    names = attributes.scale.names
    return _judged(
        chat,
        samples,
        rate,
        lambda sample, values: replace(sample, ratings=dict(zip(names, values, strict=True))),
    )


def _judged(
    chat: ChatTokenizer,
    samples: Sequence[SampleAnswer],
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
