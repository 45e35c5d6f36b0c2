"""Held-out pairs: does the policy, and does the reward model, prefer what people preferred?"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alignflow.errors import DataError
from alignflow.evaluation import scorers
from alignflow.evaluation.bootstrap import Floats
from alignflow.evaluation.measures import Items, Measure, Statistic
from alignflow.evaluation.pairs import Pairs
from alignflow.evaluation.suites.base import SuiteResult
from alignflow.training.megatron.frozen import Progress
from alignflow.training.megatron.inference import LanguageModel
from alignflow.training.megatron.trees import Tree, TreeBatch, common_root, pack_trees


@dataclass
class PairMeasures:
    """Sums over the response tokens of each pair, in nats; columns are chosen and rejected."""

    policy_B2: Floats = field(default_factory=lambda: np.empty((0, 2)))
    """Log-probability under the policy."""
    parent_B2: Floats = field(default_factory=lambda: np.empty((0, 2)))
    """Log-probability under the parent."""
    kl_B: Floats = field(default_factory=lambda: np.empty(0))
    """KL divergence of the policy from its parent along the chosen response."""
    num_tokens_B2: NDArray[np.int64] = field(default_factory=lambda: np.empty((0, 2), np.int64))
    """Tokens of the responses."""


def measure_pairs(
    policy: LanguageModel,
    parent: LanguageModel | None,
    trees: Sequence[Tree],
    *,
    max_tokens: int,
    progress: Progress,
) -> PairMeasures:
    """Run the policy, and its parent where there is one, over pairs; once each.

    Args:
        policy: The model that is judged.
        parent: The model it was trained from, with the same vocabulary.
        trees: Those of `Pairs`.
        max_tokens: Most tokens of one pass.
        progress: Told what each pass did.

    Raises:
        DataError: The vocabularies differ in size.
    """
    if parent is not None and parent.vocab_size != policy.vocab_size:
        raise DataError(
            f"the model has {policy.vocab_size} tokens in its vocabulary, its parent has "
            f"{parent.vocab_size}; give the model that it was trained from as its parent."
        )
    parts = []
    for packed, batch in pack_trees(trees, max_tokens=max_tokens, root=common_root(trees)):
        parts.append(_measure_batch(policy, parent, batch))
        progress(len(packed), batch.num_tokens * (1 if parent is None else 2))
    measures = PairMeasures()
    for name in vars(measures):
        columns = [getattr(measures, name), *(getattr(part, name) for part in parts)]
        setattr(measures, name, np.concatenate(columns))
    return measures


@torch.inference_mode()
def _measure_batch(
    policy: LanguageModel, parent: LanguageModel | None, batch: TreeBatch
) -> PairMeasures:
    hidden_PH = policy.hidden(batch)[batch.read_index_P]
    num_tokens_B2 = batch.branch_counts().view(-1, 2).numpy()
    if parent is None:
        policy_N = policy.logprobs(batch, hidden_PH)
        return PairMeasures(policy_B2=_per_pair(batch, policy_N), num_tokens_B2=num_tokens_B2)
    parent_hidden_PH = parent.hidden(batch)[batch.read_index_P]
    policy_N, parent_N, kl_N = _compare(policy, hidden_PH, parent, parent_hidden_PH, batch)
    return PairMeasures(
        policy_B2=_per_pair(batch, policy_N),
        parent_B2=_per_pair(batch, parent_N),
        kl_B=_per_pair(batch, kl_N)[:, 0],
        num_tokens_B2=num_tokens_B2,
    )


def _per_pair(batch: TreeBatch, values_N: Tensor) -> Floats:
    sums: Floats = batch.branch_sums(values_N.double()).view(-1, 2).cpu().numpy()
    return sums


def _compare(
    policy: LanguageModel,
    policy_PH: Tensor,
    parent: LanguageModel,
    parent_PH: Tensor,
    batch: TreeBatch,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return log-probabilities of the targets under both models, and KL(policy || parent).

    The divergence is exact, over the whole vocabulary; it is computed along the chosen responses,
    the first branch of each tree, and 0 elsewhere. Only a slice of positions has its logits in
    memory at a time.

    Args:
        policy: The model that is judged.
        policy_PH: Its hidden states where distributions are read.
        parent: The model to compare with.
        parent_PH: Its hidden states at the same positions.
        batch: The trees, two branches each.

    Returns:
        Three [N] float32, in nats.
    """
    device = policy.device
    policy_N, parent_N, kl_N = torch.zeros(3, len(batch.targets_N), device=device).unbind()
    for (reads, logits_nV), (_, parent_logits_nV) in zip(
        policy.logit_slices(policy_PH), parent.logit_slices(parent_PH), strict=True
    ):
        logps_nV, parent_logps_nV = logits_nV.log_softmax(-1), parent_logits_nV.log_softmax(-1)
        scores = batch.scores_of(reads)
        rows = (batch.score_read_N[scores] - reads.start).to(device)
        targets = batch.targets_N[scores].to(device)
        policy_N[scores] = logps_nV[rows, targets]
        parent_N[scores] = parent_logps_nV[rows, targets]
        chosen = (batch.score_branch_N[scores] % 2 == 0).to(device)
        kl_N[scores][chosen] = _kl_nats(logps_nV[rows[chosen]], parent_logps_nV[rows[chosen]])
    return policy_N, parent_N, kl_N


def _kl_nats(policy_nV: Tensor, parent_nV: Tensor) -> Tensor:
    """Return KL(policy || parent) of each row of log-probabilities, [n]."""
    # A token that the policy rules out adds nothing, also where the parent rules it out too.
    terms_nV = torch.where(policy_nV.isneginf(), 0.0, policy_nV.exp() * (policy_nV - parent_nV))
    return terms_nV.sum(-1)


def preference_result(measures: PairMeasures, pairs: Items, *, beta: float) -> SuiteResult:
    """Return how often the chosen response of a pair is preferred, by three measures.

    `logprob_accuracy` compares sums over tokens, so it favours the shorter response; it serves to
    compare models with one another, not with chance. `per_token_accuracy` compares means over
    tokens, the reward of arXiv:2405.14734. With a parent there are also `implicit_accuracy` and
    `implicit_margin`, of the implicit reward: eq. 5 of arXiv:2305.18290.
    """
    per_token_B2 = measures.policy_B2 / measures.num_tokens_B2
    scores = {
        "logprob_accuracy": _accuracy(pairs, -np.diff(measures.policy_B2)[:, 0]),
        "per_token_accuracy": _accuracy(pairs, -np.diff(per_token_B2)[:, 0]),
    }
    margins_B = np.full(len(measures.policy_B2), np.nan)
    if len(measures.parent_B2):
        margins_B = scorers.implicit_margins(
            *measures.policy_B2.T, *measures.parent_B2.T, beta=beta
        )
        scores |= {
            "implicit_accuracy": _accuracy(pairs, margins_B),
            "implicit_margin": Measure.mean(pairs, margins_B),
        }
    items = [
        {
            "item": number,
            "logprob_chosen": float(chosen),
            "logprob_rejected": float(rejected),
            "implicit_margin": float(margin),
        }
        for number, ((chosen, rejected), margin) in enumerate(
            zip(measures.policy_B2, margins_B, strict=True), start=1
        )
    ]
    return SuiteResult(scores, items)


def perplexity_result(measures: PairMeasures, pairs: Items) -> SuiteResult:
    """Return the score `response`: perplexity of the chosen responses."""
    return _of_tokens("response", "perplexity", -measures.policy_B2[:, 0], measures, pairs)


def kl_result(measures: PairMeasures, pairs: Items) -> SuiteResult:
    """Return the score `parent_nats_per_token`: KL from the parent along the chosen responses."""
    return _of_tokens("parent_nats_per_token", "mean", measures.kl_B, measures, pairs)


def reward_result(rewards: Sequence[Sequence[float]], pairs: Items) -> SuiteResult:
    """Return `accuracy`, how often the chosen response has the higher reward, and `margin`.

    The margin is the mean reward of the chosen response above that of the rejected one.
    """
    rewards_B2 = np.array(rewards, dtype=np.float64).reshape(-1, 2)
    items = [
        {"item": number, "reward_chosen": float(chosen), "reward_rejected": float(rejected)}
        for number, (chosen, rejected) in enumerate(rewards_B2, start=1)
    ]
    margins_B = -np.diff(rewards_B2)[:, 0]
    scores = {"accuracy": _accuracy(pairs, margins_B), "margin": Measure.mean(pairs, margins_B)}
    return SuiteResult(scores, items)


def pair_set_result(rewards: Sequence[Sequence[float]], pairs: Pairs) -> SuiteResult:
    """Return `reward_accuracy`, of all pairs and of each subset."""
    result = reward_result(rewards, pairs.items)
    accuracy = result.measures["accuracy"]
    subsets = [[record["subset"]] if record["subset"] else [] for record in pairs.records]
    return SuiteResult(
        measures={"reward_accuracy": accuracy},
        groups={"reward_accuracy": accuracy.by_group(subsets)},
        items=[
            {**item, "id": record["id"], "subset": record["subset"]}
            for item, record in zip(result.items, pairs.records, strict=True)
        ],
    )


def _accuracy(pairs: Items, margins_B: Floats) -> Measure:
    return Measure.mean(pairs, scorers.is_preferred(margins_B), is_share=True)


def _of_tokens(
    name: str, statistic: Statistic, sums_B: Floats, measures: PairMeasures, pairs: Items
) -> SuiteResult:
    """Return a score over the tokens of the chosen responses."""
    counts_B = measures.num_tokens_B2[:, 0]
    return SuiteResult(
        measures={name: Measure.over_tokens(pairs, sums_B, counts_B, statistic)},
        items=[
            {"item": number, "nats": float(nats), "num_tokens": int(count)}
            for number, (nats, count) in enumerate(zip(sums_B, counts_B, strict=True), start=1)
        ],
    )
