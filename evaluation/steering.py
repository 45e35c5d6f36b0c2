"""Whether a SteerLM model that is asked for more of an attribute gives more of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from alignflow.evaluation.measures import Items, Measure
from alignflow.evaluation.samples import SampleAnswer, answer_prompts, with_ratings
from alignflow.evaluation.suites.base import SuiteResult
from alignflow.training.chat import ChatTokenizer, Message
from alignflow.training.megatron.frozen import Progress
from alignflow.training.megatron.inference import LanguageModel
from alignflow.training.megatron.judges import AttributeModel
from alignflow.training.steering import MAX_RATING, Steering


@dataclass(frozen=True)
class SteeredAnswers:
    """Answers to the same prompts, asked for least and for most of an attribute."""

    least: list[SampleAnswer]
    most: list[SampleAnswer]


def num_answers(steering: Steering, attributes: Sequence[str], num_prompts: int) -> int:
    """Return how many answers `answer_steered` generates."""
    asked = {tuple(ratings.items()) for ratings in _asked(steering, attributes)}
    return len(asked) * num_prompts


def answer_steered(
    policy: LanguageModel,
    chat: ChatTokenizer,
    prompts: Sequence[list[Message]],
    steering: Steering,
    attributes: Sequence[str],
    *,
    max_new_tokens: int,
    progress: Progress,
) -> dict[str, SteeredAnswers]:
    """Return the greedy answers by attribute; all others stay at what is wanted of the model.

    What is asked for twice, such as what is wanted anyway, is answered once.
    """
    answers: dict[tuple[tuple[str, int], ...], list[SampleAnswer]] = {}
    for ratings in _asked(steering, attributes):
        key = tuple(ratings.items())
        if key not in answers:
            answers[key] = answer_prompts(
                policy,
                chat,
                prompts,
                max_new_tokens=max_new_tokens,
                progress=progress,
                ask=partial(steering.prompt, changed=ratings),
            )
    in_order = iter(answers[tuple(ratings.items())] for ratings in _asked(steering, attributes))
    return {name: SteeredAnswers(next(in_order), next(in_order)) for name in attributes}


def rate_steered(
    model: AttributeModel,
    chat: ChatTokenizer,
    answers: Mapping[str, SteeredAnswers],
    *,
    max_tokens: int,
    progress: Progress | None = None,
) -> dict[str, SteeredAnswers]:
    """Return the answers with their ratings; the model sees the prompt without the label."""
    rate = partial(with_ratings, model, chat, max_tokens=max_tokens, progress=progress)
    return {name: SteeredAnswers(rate(of.least), rate(of.most)) for name, of in answers.items()}


def steering_result(answers: Mapping[str, SteeredAnswers]) -> SuiteResult:
    """Return a score `…_response` for each attribute: rating at most less rating at least.

    It is the mean over the prompts that are answered both times; the answers to one prompt are
    compared with one another, so that what a prompt makes of any answer cancels.
    """
    measures = {}
    items = []
    for name, of in answers.items():
        prompts, differences = [], []
        for number, (least, most) in enumerate(zip(of.least, of.most, strict=True), start=1):
            if least.ratings is None or most.ratings is None:
                continue
            prompts.append(most.prompt)
            differences.append(most.ratings[name] - least.ratings[name])
            items.append(
                {
                    "item": number,
                    "attribute": name,
                    "prompt": most.prompt,
                    "least": {"answer": least.answer, "rating": least.ratings[name]},
                    "most": {"answer": most.answer, "rating": most.ratings[name]},
                }
            )
        measures[f"{name}_response"] = Measure.mean(Items.of(prompts), differences)
    return SuiteResult(measures=measures, items=items)


def _asked(steering: Steering, attributes: Sequence[str]) -> list[dict[str, int]]:
    """Return all that is asked for: each attribute at least, then at most."""
    return [{**steering.wanted, name: rating} for name in attributes for rating in (0, MAX_RATING)]
