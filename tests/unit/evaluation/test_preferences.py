"""Scores of pairs, worked out by hand, and the exactness of the divergence."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from alignflow.errors import DataError
from alignflow.evaluation.measures import Items
from alignflow.evaluation.pairs import Pairs
from alignflow.evaluation.preferences import (
    PairMeasures,
    kl_result,
    pair_passes,
    pair_set_result,
    perplexity_result,
    preference_result,
    reward_result,
)
from alignflow.training.megatron import inference
from alignflow.training.megatron.inference import LanguageModel
from alignflow.training.megatron.trees import Branch, Tree

PAIRS = [
    Tree([5, 6, 7], [Branch.scored([8, 9]), Branch([8, 1, 2], [True, True, False])]),
    Tree([5, 6], [Branch.scored([3]), Branch.scored([4, 4, 4, 4])]),
    Tree([5, 9, 9, 9], [Branch.scored([1, 2, 3]), Branch.scored([1, 2])]),
]

TWO = Items.of(["one", "two"])


def measured(
    policy: LanguageModel, parent: LanguageModel | None, *, max_tokens: int
) -> PairMeasures:
    passes = pair_passes(policy, parent, PAIRS, max_tokens=max_tokens)
    return PairMeasures.of_rows([row for rows, _ in passes for row in rows])


@pytest.fixture
def measures() -> PairMeasures:
    return PairMeasures(
        policy_B2=np.array([[-4.0, -5.0], [-9.0, -6.0]]),
        parent_B2=np.array([[-5.0, -5.0], [-10.0, -8.0]]),
        kl_B=np.array([0.5, 1.0]),
        num_tokens_B2=np.array([[1, 2], [4, 2]]),
    )


def test_implicit_rewards_are_worked_out_by_hand(measures: PairMeasures) -> None:
    # Policy less parent: chosen +1 and +1, rejected 0 and +2; margins 0.1 * 1 and 0.1 * -1.
    result = preference_result(measures, TWO, beta=0.1)
    assert result.scores == {
        "logprob_accuracy": 0.5,
        # A token: -4 against -2.5, and -2.25 against -3.
        "per_token_accuracy": 0.5,
        "implicit_accuracy": 0.5,
        "implicit_margin": pytest.approx(0.0),
    }
    assert [item["implicit_margin"] for item in result.items] == pytest.approx([0.1, -0.1])


def test_perplexity_and_divergence_are_means_over_tokens(measures: PairMeasures) -> None:
    # 4 + 9 nats over 5 tokens; 0.5 + 1.0 nats over 5 tokens.
    assert perplexity_result(measures, TWO).scores == {"response": pytest.approx(math.exp(13 / 5))}
    assert kl_result(measures, TWO).scores == {"parent_nats_per_token": pytest.approx(0.3)}


def test_without_a_parent_there_is_no_implicit_reward() -> None:
    measures = PairMeasures(policy_B2=np.array([[-1.0, -3.0]]), num_tokens_B2=np.array([[1, 4]]))
    result = preference_result(measures, Items.of(["one"]), beta=0.1)
    assert result.scores == {"logprob_accuracy": 1.0, "per_token_accuracy": 0.0}


def test_equal_values_are_half_a_preference_and_nan_has_none() -> None:
    three = Items.of(["one", "two", "three"])
    # Margins 0, 1 and -0.5.
    assert reward_result([[1.0, 1.0], [2.0, 1.0], [1.5, 2.0]], three).scores == {
        "accuracy": 0.5,
        "margin": pytest.approx(0.5 / 3),
    }
    assert math.isnan(reward_result([[math.nan, 1.0], [2.0, 1.0]], TWO).scores["accuracy"])


def test_reward_model_is_judged_on_each_subset() -> None:
    subsets = ["honest", "harmless", "honest", None]
    pairs = Pairs(
        trees=PAIRS,
        items=Items.of(range(4), sources=["one", "other", "one", "other"]),
        records=[{"id": str(n), "subset": subset} for n, subset in enumerate(subsets)],
        num_truncated=0,
        refused=[],
        num_refused=0,
    )
    result = pair_set_result([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [2.0, 1.0]], pairs)
    # Right, wrong, even, right: 2.5 of 4.
    assert result.scores == {"reward_accuracy": 0.625}
    by_subset = {name: of.value for name, of in result.groups["reward_accuracy"].items()}
    assert by_subset == {"harmless": 0.0, "honest": 0.75}
    assert [item["subset"] for item in result.items] == ["honest", "harmless", "honest", None]
    assert result.measures["reward_accuracy"].estimate().num_sources == 2


def test_a_model_does_not_diverge_from_itself(llama_dir: Path) -> None:
    policy, parent = (LanguageModel.load(llama_dir, precision="fp32") for _ in range(2))
    measures = measured(policy, parent, max_tokens=10)
    assert measures.kl_B.tolist() == [0.0, 0.0, 0.0]
    assert np.array_equal(measures.policy_B2, measures.parent_B2)
    assert measures.num_tokens_B2[:, 0].tolist() == [2, 1, 3]


def test_divergence_is_exact_however_small_the_slices(
    llama_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, parent = (LanguageModel.load(llama_dir, precision="fp32") for _ in range(2))
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in policy.model.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    whole = measured(policy, parent, max_tokens=100)
    assert (whole.kl_B > 0).all()
    # Two positions of a vocabulary of 96 at a time.
    monkeypatch.setattr(inference, "_LOGIT_ELEMENTS", 200)
    sliced = measured(policy, parent, max_tokens=4)
    alone = measured(policy, None, max_tokens=100)
    for name in ("policy_B2", "parent_B2", "kl_B"):
        np.testing.assert_allclose(getattr(sliced, name), getattr(whole, name), atol=1e-4)
    np.testing.assert_allclose(alone.policy_B2, whole.policy_B2, atol=1e-4)


def test_parent_with_another_vocabulary_is_refused(llama_dir: Path, wide_llama_dir: Path) -> None:
    policy = LanguageModel.load(llama_dir, precision="fp32")
    parent = LanguageModel.load(wide_llama_dir, precision="fp32")
    with pytest.raises(DataError, match="has 96 tokens in its vocabulary, its parent has 128"):
        measured(policy, parent, max_tokens=100)
