"""Whether a SteerLM model that is asked for more of an attribute gives more of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from alignflow.evaluation.measures import Items, Measure
from alignflow.evaluation.samples import SampleAnswer
from alignflow.evaluation.suites.base import SuiteResult
from alignflow.training.chat import Message
from alignflow.training.steering import MAX_RATING, Steering


@dataclass(frozen=True)
class SteeredAnswers:
    """Answers to the same prompts, asked for least and for most of an attribute."""

    least: list[SampleAnswer]
    most: list[SampleAnswer]


def num_answers(steering: Steering, attributes: Sequence[str], num_prompts: int) -> int:
    """Return how many answers there are to give: what is asked for twice counts once."""
    return len(_different(steering, attributes)) * num_prompts


def steered_prompts(
    prompts: Sequence[Sequence[Message]], steering: Steering, attributes: Sequence[str]
) -> list[list[Message]]:
    """Return what the policy is given: all prompts once for each different wish.

    All but one attribute stay at what is wanted of the model. What is asked for twice, such as what
    is wanted anyway, is there once.
    """
    return [
        list(steering.prompt(prompt, changed=dict(ratings)))
        for ratings in _different(steering, attributes)
        for prompt in prompts
    ]


def steered_answers(
    answers: Sequence[SampleAnswer], steering: Steering, attributes: Sequence[str]
) -> dict[str, SteeredAnswers]:
    """Return the answers to `steered_prompts`, in its order, by attribute."""
    different = _different(steering, attributes)
    num_prompts = len(answers) // max(len(different), 1)
    by_wish = {
        ratings: list(answers[number * num_prompts :][:num_prompts])
        for number, ratings in enumerate(different)
    }
    in_order = iter(by_wish[tuple(ratings.items())] for ratings in _asked(steering, attributes))
    return {name: SteeredAnswers(next(in_order), next(in_order)) for name in attributes}


def all_answers(steered: Mapping[str, SteeredAnswers]) -> list[SampleAnswer]:
    """Return the answers of all attributes one after the other, least before most."""
    return [answer for of in steered.values() for answer in (*of.least, *of.most)]


def by_attribute(
    answers: Sequence[SampleAnswer], steered: Mapping[str, SteeredAnswers]
) -> dict[str, SteeredAnswers]:
    """Return what `all_answers` gave, with ratings now, by attribute again."""
    left = iter(answers)
    return {
        name: SteeredAnswers(list(islice(left, len(of.least))), list(islice(left, len(of.most))))
        for name, of in steered.items()
    }


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


def _different(steering: Steering, attributes: Sequence[str]) -> list[tuple[tuple[str, int], ...]]:
    """Return the different ones of all that is asked for, in order."""
    return list(dict.fromkeys(tuple(ratings.items()) for ratings in _asked(steering, attributes)))
