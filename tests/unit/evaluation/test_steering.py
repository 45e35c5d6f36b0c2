import math

import pytest

from alignflow.evaluation.samples import SampleAnswer, rating_result
from alignflow.evaluation.steering import SteeredAnswers, num_answers, steering_result
from alignflow.training.steering import Steering


def answers(*ratings: float | None) -> list[SampleAnswer]:
    """Answers of a quality each; None where there was nothing to rate."""
    return [
        SampleAnswer(
            [{"role": "user", "content": f"question {number}"}],
            "answer",
            num_tokens=2,
            ratings=None if rating is None else {"quality": rating, "humor": 9.0},
        )
        for number, rating in enumerate(ratings)
    ]


def test_response_is_the_mean_difference_over_prompts_rated_both_times() -> None:
    # Differences 3 and -1; the second prompt has no answer to one of the two.
    steered = SteeredAnswers(least=answers(1, None, 2), most=answers(4, 4, 1))
    result = steering_result({"quality": steered})
    assert result.scores == {"quality_response": 1}
    assert result.measures["quality_response"].columns_NC[:, 0].tolist() == [3, -1]
    assert [(item["item"], item["most"]["rating"]) for item in result.items] == [(1, 4), (3, 1)]


def test_without_an_answer_there_is_no_response() -> None:
    result = steering_result({"quality": SteeredAnswers(answers(None), answers(2))})
    assert math.isnan(result.scores["quality_response"])
    assert result.items == []


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ((), 0),
        # Quality of 4 is wanted anyway.
        (("quality",), 2),
        # 4 and 0 of quality, humor at 0 and 4: what is wanted, three times, is answered once.
        (("quality", "toxicity"), 3),
        (("quality", "humor"), 4),
    ],
)
def test_what_is_asked_twice_is_answered_once(attributes: tuple[str, ...], expected: int) -> None:
    steering = Steering({"quality": 4, "toxicity": 0, "humor": 2})
    assert num_answers(steering, attributes, 5) == 5 * expected


def test_samples_have_the_mean_of_each_attribute() -> None:
    result = rating_result(answers(1, None, 2), ("quality", "humor"))
    assert result.scores == {"quality": 1.5, "humor": 9}
    assert math.isnan(rating_result(answers(None), ("humor",)).scores["humor"])
