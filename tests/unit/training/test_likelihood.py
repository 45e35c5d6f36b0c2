import math

import numpy as np
import pytest
import torch

from alignflow.training.likelihood import rating_log_likelihood


def likelihoods(predicted: float, concentration: float) -> list[float]:
    """The probability of each rating of 0 to 4."""
    predictions = torch.full((1, 5), predicted)
    logs = rating_log_likelihood(predictions, torch.arange(5), concentration=concentration)
    return [float(value) for value in logs[0].exp()]


def test_a_flat_distribution_gives_each_rating_the_width_of_its_bin() -> None:
    # Prediction 2 of 4 and concentration 2: alpha = beta = 1, every share of the scale alike.
    assert likelihoods(2.0, 2.0) == pytest.approx([0.125, 0.25, 0.25, 0.25, 0.125])


def test_likelihood_is_the_hand_worked_one() -> None:
    # Concentration 4: alpha = beta = 2, the cumulative distribution is 3 x^2 - 2 x^3:
    # 11/256 at 1/8 and 81/256 at 3/8.
    expected = [11 / 256, 70 / 256, 94 / 256, 70 / 256, 11 / 256]
    assert likelihoods(2.0, 4.0) == pytest.approx(expected)


@pytest.mark.parametrize("predicted", [-3.0, 0.0, 0.3, 1.7, 2.5, 3.99, 4.0, 9.0])
@pytest.mark.parametrize("concentration", [0.5, 24.0, 300.0])
def test_the_ratings_share_the_whole(predicted: float, concentration: float) -> None:
    assert sum(likelihoods(predicted, concentration)) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("predicted", [0.6, 1.2, 2.0, 3.3])
def test_likelihood_equals_a_sum_over_the_density(predicted: float) -> None:
    alpha, beta = 24 * predicted / 4, 24 * (1 - predicted / 4)
    shares = (np.arange(2_000_000) + 0.5) / 2_000_000
    log_density = (alpha - 1) * np.log(shares) + (beta - 1) * np.log1p(-shares)
    log_density -= math.lgamma(alpha) + math.lgamma(beta) - math.lgamma(24)
    parts = np.split(np.exp(log_density) / 2_000_000, [250_000, 750_000, 1_250_000, 1_750_000])
    expected = [part.sum() for part in parts]
    assert likelihoods(predicted, 24.0) == pytest.approx(expected, rel=1e-6)


def test_far_off_ratings_keep_their_digits() -> None:
    """The upper and the lower tail are each other's mirror, down to 1e-18 and below."""
    lowest, highest = likelihoods(3.6, 24.0)[0], likelihoods(0.4, 24.0)[4]
    assert 0 < lowest < 1e-15
    assert highest == pytest.approx(lowest, rel=1e-9)


def test_each_answer_and_attribute_stands_for_itself() -> None:
    predicted = torch.tensor([[0.5, 3.5], [2.0, 5.0], [3.0, -1.0]])
    ratings = torch.tensor([1, 4])
    together = rating_log_likelihood(predicted, ratings, concentration=24.0)
    assert together.shape == (3, 2)
    for row in range(3):
        for column in range(2):
            alone = rating_log_likelihood(
                predicted[row : row + 1, column : column + 1],
                ratings[column : column + 1],
                concentration=24.0,
            )
            torch.testing.assert_close(together[row, column], alone[0, 0])


def test_a_nearer_prediction_is_likelier() -> None:
    predictions = torch.tensor([[0.0], [1.0], [2.0], [3.0], [4.0]])
    logs = rating_log_likelihood(predictions, torch.tensor([3]), concentration=24.0)[:, 0]
    assert logs.argmax() == 3
    assert logs[0] < logs[1] < logs[2] < logs[3] > logs[4]
    assert logs.isfinite().all()
