"""Draws follow the distribution, and nothing but their key."""

import pytest
import torch
from torch import Tensor

from alignflow.training.sampling import Sampling, draw, uniforms

PROBABILITIES = torch.tensor([0.1, 0.4, 0.2, 0.3])


def drawn(uniform: float, sampling: Sampling = Sampling()) -> tuple[int, float]:  # noqa: B008
    point_B = torch.tensor([uniform], dtype=torch.float64)
    token_B, logp_B = draw(PROBABILITIES.log()[None], point_B, sampling)
    return int(token_B), float(logp_B)


@pytest.mark.parametrize(
    ("uniform", "token"), [(0.0, 0), (0.099, 0), (0.101, 1), (0.499, 1), (0.501, 2), (0.999, 3)]
)
def test_a_draw_is_where_the_cumulated_probabilities_pass_the_number(
    uniform: float, token: int
) -> None:
    found, logp = drawn(uniform)
    assert found == token
    assert logp == pytest.approx(float(PROBABILITIES[token].log()))


@pytest.mark.parametrize(
    ("sampling", "kept"),
    [
        # In falling order 0.4, 0.3, 0.2, 0.1 of the tokens 1, 3, 2, 0.
        (Sampling(top_k=2), {1: 0.4, 3: 0.3}),
        (Sampling(top_k=9), {1: 0.4, 3: 0.3, 2: 0.2, 0: 0.1}),
        (Sampling(top_p=0.69), {1: 0.4, 3: 0.3}),
        (Sampling(top_p=0.71), {1: 0.4, 3: 0.3, 2: 0.2}),
        (Sampling(top_p=0.01), {1: 0.4}),
        # Of the three likeliest 0.4 is a share of 4/9.
        (Sampling(top_k=3, top_p=0.43), {1: 0.4}),
        (Sampling(top_k=3, top_p=0.45), {1: 0.4, 3: 0.3}),
        # Squared and normalised: 0.01, 0.16, 0.04, 0.09 of 0.3.
        (Sampling(temperature=0.5), {0: 0.01, 1: 0.16, 2: 0.04, 3: 0.09}),
    ],
)
def test_shares_of_the_draws_are_the_probabilities_of_what_is_kept(
    sampling: Sampling, kept: dict[int, float]
) -> None:
    points_B = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    tokens_B, logps_B = draw(PROBABILITIES.log().expand(10_000, 4), points_B, sampling)
    shares_V = torch.bincount(tokens_B, minlength=4) / 10_000
    expected_V = torch.tensor([kept.get(token, 0.0) for token in range(4)]) / sum(kept.values())
    torch.testing.assert_close(shares_V, expected_V, rtol=0, atol=2e-4)
    # The log-probability is that at the temperature, with nothing left out.
    whole_V = PROBABILITIES ** (1 / sampling.temperature)
    torch.testing.assert_close(logps_B, (whole_V / whole_V.sum()).log()[tokens_B])


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(top_k=2)])
def test_an_excluded_token_is_not_drawn_and_keeps_its_share_of_the_log_probability(
    sampling: Sampling,
) -> None:
    points_B = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    logits_BV = PROBABILITIES.log().expand(10_000, 4)
    tokens_B, logps_B = draw(logits_BV, points_B, sampling, excluded={1, 0})
    # Of the tokens 2 and 3, with 0.2 and 0.3, which are the two likeliest of those left.
    shares_V = torch.bincount(tokens_B, minlength=4) / 10_000
    torch.testing.assert_close(shares_V, torch.tensor([0.0, 0.0, 0.4, 0.6]), rtol=0, atol=2e-4)
    torch.testing.assert_close(logps_B, PROBABILITIES.log()[tokens_B])


def test_draws_from_a_large_vocabulary_are_those_of_the_plain_inverse() -> None:
    generator = torch.Generator().manual_seed(0)
    logits_BV = 3 * torch.randn(64, 5003, generator=generator)
    points_B = torch.rand(64, generator=generator, dtype=torch.float64)
    tokens_B, _ = draw(logits_BV, points_B, Sampling())
    cumulated_BV = logits_BV.double().softmax(-1).cumsum(-1)
    rows_B = torch.arange(64)
    # Within the rounding of probabilities in float32.
    assert (cumulated_BV[rows_B, tokens_B] > points_B - 1e-6).all()
    before_B = torch.where(tokens_B > 0, cumulated_BV[rows_B, tokens_B - 1], 0.0)
    assert (before_B < points_B + 1e-6).all()
    assert (before_B - cumulated_BV[rows_B, tokens_B] < 0).all()


def test_a_token_without_probability_is_never_drawn() -> None:
    logits_BV = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).expand(3, 5)
    points_B = torch.tensor([0.0, 0.5, 1 - 2**-53], dtype=torch.float64)
    tokens_B, _ = draw(logits_BV, points_B, Sampling())
    assert tokens_B.tolist() == [1, 3, 3]


def test_numbers_follow_from_their_key_alone() -> None:
    first = uniforms((7, 0, 3, 1), 5)
    assert torch.equal(uniforms((7, 0, 3, 1), 8)[:5], first)
    others = [(8, 0, 3, 1), (7, 1, 3, 1), (7, 0, 4, 1), (7, 0, 3, 2)]
    assert not any(is_close(uniforms(key, 5), first) for key in others)
    assert ((first >= 0) & (first < 1)).all()


def is_close(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().min() < 1e-9)
