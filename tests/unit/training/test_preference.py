"""From batches and a config to the losses of the DPO family."""

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from alignflow.training.config import DPOConfig
from alignflow.training.errors import ReferenceMismatchError
from alignflow.training.pairs import ReferencedPairBatch, pack_referenced_pairs
from alignflow.training.preference import MismatchKL, loss_of_reference, pair_loss, response_loss
from alignflow.training.responses import ResponseBatch, pack_responses
from alignflow.training.rows import RowSummary, TokenRows
from alignflow.training.stages.dpo import check_first_loss

# A chosen response of one token and a rejected one of three, after prompts of so many tokens.
LENGTHS = (1, 3)
LOSSES: list[dict[str, Any]] = [
    {"loss": "sigmoid"},
    {"loss": "sigmoid", "label_smoothing": 0.2},
    {"loss": "ipo"},
    {"loss": "rpo_sq", "reward_scale": 0.5},
    {"loss": "rpo_fwd_kl", "reward_scale": 0.5},
    {"loss": "rpo_bwd_kl", "reward_scale": 0.5},
]


def rows_of(*, num_prompt: int, rows_per_item: int, label: float) -> TokenRows:
    """Two items' worth of rows, the responses alternating between the two lengths."""
    flags = [np.arange(num_prompt + LENGTHS[row % 2]) >= num_prompt for row in range(4)]
    return TokenRows(
        tokens=np.arange(sum(map(len, flags)), dtype=np.int32),
        is_learnt=np.concatenate(flags),
        starts_R1=np.cumsum([0, *map(len, flags)], dtype=np.int64),
        shared_I=np.zeros(4 // rows_per_item, np.int64),
        labels_IL=np.full((4 // rows_per_item, 1), label, np.float32),
        rows_per_item=rows_per_item,
        summary=RowSummary("digest", 0, {}, ()),
    )


def pair_batch(*, num_prompt: int = 2, gap: float = 3.0) -> ReferencedPairBatch:
    rows = rows_of(num_prompt=num_prompt, rows_per_item=2, label=gap)
    return pack_referenced_pairs(rows, np.array([0, 1]), torch.tensor([-2.0, -6, -4, -3]))


def response_batch(*, num_prompt: int = 2, label: float = 1.0) -> ResponseBatch:
    rows = rows_of(num_prompt=num_prompt, rows_per_item=1, label=label)
    return pack_responses(rows, np.arange(4), torch.tensor([-2.0, -6, -4, -3]))


def logps() -> Tensor:
    """Of the scored tokens of four rows: -1; -1, -2, -3; -2; -1, -1, -4."""
    return torch.tensor([-1.0, -1, -2, -3, -2, -1, -1, -4])


def known(nats: float) -> MismatchKL:
    return cast("MismatchKL", SimpleNamespace(nats=nats))


def test_ipo_goes_by_means_over_tokens() -> None:
    # Log ratios of the first pair: (-1 + 2) / 1 = 1 and (-6 + 6) / 3 = 0; of the second
    # (-2 + 4) / 1 = 2 and (-6 + 3) / 3 = -1. Margins 1 and 3, at beta 0.25 the target is 2.
    loss = pair_loss(logps(), pair_batch(), config=DPOConfig(loss="ipo", beta=0.25))
    torch.testing.assert_close(loss.total, torch.tensor(1.0 + 1.0))


def test_dpo_goes_by_sums() -> None:
    # Margins 1 - 0 and 2 + 3 nats; at beta 0.2 the logits are 0.2 and 1.
    loss = pair_loss(logps(), pair_batch(), config=DPOConfig(beta=0.2))
    expected = math.log1p(math.exp(-0.2)) + math.log1p(math.exp(-1))
    torch.testing.assert_close(loss.total, torch.tensor(expected))


def test_rpo_goes_by_the_scores_of_the_pair() -> None:
    # Logits 0.2 and 1 against 0.5 * 3 = 1.5: 1.3^2 + 0.5^2.
    config = DPOConfig(loss="rpo_sq", beta=0.2, reward_scale=0.5)
    loss = pair_loss(logps(), pair_batch(gap=3.0), config=config)
    torch.testing.assert_close(loss.total, torch.tensor(1.69 + 0.25))


@pytest.mark.parametrize("options", LOSSES)
def test_sft_term_is_the_mean_over_the_chosen_tokens(options: dict[str, Any]) -> None:
    plain = pair_loss(logps(), pair_batch(), config=DPOConfig(**options))
    loss = pair_loss(logps(), pair_batch(), config=DPOConfig(**options, sft_weight=0.5))
    # The chosen responses have one token each, of -1 and -2 nats.
    torch.testing.assert_close(loss.total, plain.total + 0.5 * 3)
    torch.testing.assert_close(loss.metrics["preference_loss"], plain.total)


def test_kto_judges_from_the_measured_kl_and_imitates_the_desirable_alone() -> None:
    # Log ratios 1, 0, 2, -3, a KL term of 1: the logits of desirable ones are 0, -1, 1, -4.
    config = DPOConfig(loss="kto", beta=1.0, sft_weight=0.5)
    loss = response_loss(logps(), response_batch(), kl=known(1.0), config=config)
    expected = sum(1 / (1 + math.exp(logit)) for logit in (0, -1, 1, -4))
    torch.testing.assert_close(loss.metrics["preference_loss"], torch.tensor(expected))
    # Means over tokens -1, -2, -2, -2.
    torch.testing.assert_close(loss.total, torch.tensor(expected + 0.5 * 7))
    undesirable = response_loss(logps(), response_batch(label=0), kl=known(1.0), config=config)
    expected = sum(1 / (1 + math.exp(-logit)) for logit in (0, -1, 1, -4))
    torch.testing.assert_close(undesirable.total, torch.tensor(expected))
    assert undesirable.metrics["sft_loss"] == 0


@pytest.mark.parametrize("options", LOSSES)
def test_prompt_tokens_change_nothing(options: dict[str, Any]) -> None:
    config = DPOConfig(**options, sft_weight=0.5)
    short, long = (pair_loss(logps(), pair_batch(num_prompt=n), config=config) for n in (1, 9))
    torch.testing.assert_close(long.total, short.total)


def test_prompt_tokens_change_nothing_in_kto() -> None:
    config = DPOConfig(loss="kto", sft_weight=0.5)
    short, long = (
        response_loss(logps(), response_batch(num_prompt=n), kl=known(0.5), config=config)
        for n in (1, 9)
    )
    torch.testing.assert_close(long.total, short.total)


@pytest.mark.parametrize("options", [*LOSSES, {"loss": "kto"}])
def test_an_empty_share_of_a_batch_adds_nothing(options: dict[str, Any]) -> None:
    config = DPOConfig(**options, sft_weight=0.5)
    logps_N, nobody = torch.empty(0, requires_grad=True), np.array([], dtype=np.int64)
    if config.loss == "kto":
        rows = rows_of(num_prompt=1, rows_per_item=1, label=1)
        responses = pack_responses(rows, nobody, torch.zeros(4))
        loss = response_loss(logps_N, responses, kl=known(0.5), config=config)
    else:
        rows = rows_of(num_prompt=1, rows_per_item=2, label=1)
        pairs = pack_referenced_pairs(rows, nobody, torch.zeros(4))
        loss = pair_loss(logps_N, pairs, config=config)
    assert loss.total == loss.units == 0
    loss.total.backward()  # type: ignore[no-untyped-call]


class TestFirstLoss:
    @pytest.mark.parametrize(
        ("options", "labels", "expected"),
        [
            ({"loss": "sigmoid"}, [[], []], math.log(2)),
            ({"loss": "sigmoid", "label_smoothing": 0.3}, [[], []], math.log(2)),
            ({"loss": "ipo", "beta": 0.1}, [[], []], 25.0),
            # Logits of 0 against 1 and 3.
            ({"loss": "rpo_sq", "reward_scale": 0.5}, [[2], [6]], (1 + 9) / 2),
            # KL of (1/2, 1/2) to (3/4, 1/4), and the other way round.
            ({"loss": "rpo_fwd_kl"}, [[math.log(3)]], 0.5 * math.log(4 / 3)),
            ({"loss": "rpo_bwd_kl"}, [[math.log(3)]], 0.75 * math.log(1.5) - 0.25 * math.log(2)),
            # Half the weights, of one desirable response in four.
            ({"loss": "kto", "desirable_weight": 3}, [[1], [0], [0], [0]], (3 + 3 * 1) / 2 / 4),
        ],
    )
    def test_it_is_that_of_a_policy_equal_to_its_reference(
        self, options: dict[str, Any], labels: list[list[float]], expected: float
    ) -> None:
        labels_BL = torch.tensor(labels, dtype=torch.float32)
        found = loss_of_reference(labels_BL, config=DPOConfig(**options))
        assert found == pytest.approx(expected, rel=1e-6)

    @pytest.mark.parametrize("options", [*LOSSES, {"loss": "kto"}])
    def test_a_batch_scored_by_its_reference_has_it(self, options: dict[str, Any]) -> None:
        config = DPOConfig(**options, sft_weight=0.5)
        if config.loss == "kto":
            responses = replace(response_batch(), reference_B=torch.tensor([-1.0, -6, -2, -6]))
            loss = response_loss(logps(), responses, kl=known(0.0), config=config)
            expected = loss_of_reference(torch.ones(4, 1), config=config)
        else:
            batch = replace(
                pair_batch(),
                reference_chosen_B=torch.tensor([-1.0, -2]),
                reference_rejected_B=torch.tensor([-6.0, -6]),
            )
            loss = pair_loss(logps(), batch, config=config)
            expected = loss_of_reference(batch.labels_BL, config=config)
        means = {name: float(value / loss.units) for name, value in loss.metrics.items()}
        means["loss"] = float(loss.total / loss.units)
        check_first_loss(means, expected=expected, precision="fp32")
        with pytest.raises(ReferenceMismatchError, match="policy and reference differ"):
            check_first_loss(
                means | {"preference_loss": expected + 1e-3},
                expected=expected,
                precision="fp32",
            )

    def test_a_kl_term_that_cancels_out_of_the_loss_is_refused(self) -> None:
        with pytest.raises(ReferenceMismatchError, match=r"first KL term is 0\.500000, not 0"):
            check_first_loss({"loss": 0.5, "kl": 0.5}, expected=0.5, precision="bf16")

    def test_a_loss_that_is_no_number_is_refused(self) -> None:
        with pytest.raises(ReferenceMismatchError):
            check_first_loss({"loss": math.nan}, expected=math.log(2), precision="bf16")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "ipo", "label_smoothing": 0.1}, "label_smoothing does nothing under the loss"),
        ({"reward_scale": 2.0}, "reward_scale does nothing under the loss sigmoid"),
        ({"loss": "rpo_sq", "desirable_weight": 2.0}, "desirable_weight does nothing"),
        ({"loss": "ipo", "undesirable_weight": 2.0}, "undesirable_weight does nothing"),
        ({"label_smoothing": 0.5}, "less than 0.5"),
        ({"loss": "ipo", "beta": 0.01}, "max_loss must be 2500 or more"),
    ],
)
def test_options_without_effect_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DPOConfig(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"loss": "rpo_bwd_kl", "reward_scale": 2.0, "sft_weight": 0.1},
        {"loss": "kto", "desirable_weight": 2.0, "undesirable_weight": 0.5, "sft_weight": 0.1},
        {"loss": "ipo", "beta": 0.01, "max_loss": 2500},
    ],
)
def test_options_of_the_loss_are_taken(options: dict[str, Any]) -> None:
    assert DPOConfig(**options).model_dump().items() >= options.items()
