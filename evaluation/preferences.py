"""Held-out pairs: does the policy, and does the reward model, prefer what people preferred?"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from alignflow.errors import DataError
from alignflow.evaluation import scorers
from alignflow.evaluation.suites.base import SuiteResult
from alignflow.training.megatron.frozen import Progress
from alignflow.training.megatron.inference import LanguageModel
from alignflow.training.megatron.trees import Branch, Tree, TreeBatch, common_root, pack_trees
from alignflow.training.rows import TokenRows

Floats = NDArray[np.float64]


def pair_trees(rows: TokenRows, limit: int | None) -> list[Tree]:
    """Return a tree a pair: the prompt, then the chosen and the rejected response."""
    return [_pair_tree(rows, item) for item in range(len(rows))[:limit]]


def _pair_tree(rows: TokenRows, item: int) -> Tree:
    chosen, rejected = rows.row(2 * item), rows.row(2 * item + 1)
    prompt_length = int(chosen.is_learnt_T.argmax())
    branches = [
        Branch(row.tokens_T[prompt_length:].tolist(), row.is_learnt_T[prompt_length:].tolist())
        for row in (chosen, rejected)
    ]
    return Tree(chosen.tokens_T[:prompt_length].tolist(), branches)


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
        trees: What `pair_trees` returns.
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


def preference_result(measures: PairMeasures, *, beta: float) -> SuiteResult:
    """Return how often the chosen response of a pair is preferred, by three measures.

    `logprob_accuracy` compares sums over tokens, so it favours the shorter response; it serves to
    compare models with one another, not with chance. `per_token_accuracy` compares means over
    tokens, the reward of arXiv:2405.14734. With a parent there are also `implicit_accuracy` and
    `implicit_margin`, of the implicit reward: eq. 5 of arXiv:2305.18290.
    """
    per_token_B2 = measures.policy_B2 / measures.num_tokens_B2
    columns = {
        "logprob_accuracy": scorers.is_preferred(-np.diff(measures.policy_B2)[:, 0]),
        "per_token_accuracy": scorers.is_preferred(-np.diff(per_token_B2)[:, 0]),
    }
    margins_B = np.full(len(measures.policy_B2), np.nan)
    if len(measures.parent_B2):
        margins_B = scorers.implicit_margins(
            *measures.policy_B2.T, *measures.parent_B2.T, beta=beta
        )
        columns |= {
            "implicit_accuracy": scorers.is_preferred(margins_B),
            "implicit_margin": margins_B,
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
    return _of_means(columns, items)


def perplexity_result(measures: PairMeasures) -> SuiteResult:
    """Return the score `response`: perplexity of the chosen responses."""
    return _of_tokens("response", scorers.perplexity, -measures.policy_B2[:, 0], measures)


def kl_result(measures: PairMeasures) -> SuiteResult:
    """Return the score `parent_nats_per_token`: KL from the parent along the chosen responses."""
    return _of_tokens("parent_nats_per_token", scorers.ratio, measures.kl_B, measures)


def reward_result(rewards: Sequence[Sequence[float]]) -> SuiteResult:
    """Return the score `accuracy`: how often the chosen response has the higher reward."""
    rewards_B2 = np.array(rewards, dtype=np.float64).reshape(-1, 2)
    items = [
        {"item": number, "reward_chosen": float(chosen), "reward_rejected": float(rejected)}
        for number, (chosen, rejected) in enumerate(rewards_B2, start=1)
    ]
    return _of_means({"accuracy": scorers.is_preferred(-np.diff(rewards_B2)[:, 0])}, items)


def _of_means(columns: dict[str, Floats], items: list[dict[str, Any]]) -> SuiteResult:
    return SuiteResult(
        scores={name: scorers.mean(values) for name, values in columns.items()},
        resamples={name: scorers.resampled_mean(values) for name, values in columns.items()},
        items=items,
    )


def _of_tokens(
    name: str,
    score: Callable[[ArrayLike, ArrayLike], float],
    sums_B: Floats,
    measures: PairMeasures,
) -> SuiteResult:
    """Return a score over the tokens of the chosen responses, drawn again response by response."""
    counts_B = measures.num_tokens_B2[:, 0]

    def of_responses(index_N: NDArray[np.int64]) -> float:
        return score(sums_B[index_N], counts_B[index_N])

    return SuiteResult(
        scores={name: score(sums_B, counts_B)},
        resamples={name: scorers.resampled(of_responses, len(sums_B))},
        items=[
            {"item": number, "nats": float(nats), "num_tokens": int(count)}
            for number, (nats, count) in enumerate(zip(sums_B, counts_B, strict=True), start=1)
        ],
    )
