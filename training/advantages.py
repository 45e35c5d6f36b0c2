"""From scores of responses to advantages of their tokens: pure functions of a whole rollout.

B responses lie one after another in flat tensors of N tokens; `lengths_B` says how many tokens each
has, at least one. Every rank holds the whole rollout, so that statistics over it are global without
a word exchanged.
"""

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


def token_rewards(kl_N: Tensor, scores_B: Tensor, lengths_B: Tensor, *, kl_coef: float) -> Tensor:
    """Reward of each token, [N]: -kl_coef * KL, plus at a response's last token its score.

    Section 2.2 of arXiv:1909.08593, token by token.

    Args:
        kl_N: [N], estimates of the divergence from the reference, in nats.
        scores_B: [B], what the reward model says of each response.
        lengths_B: [B] int64, tokens of each response.
        kl_coef: Price of a nat, in units of the score.
    """
    return (-kl_coef * kl_N).index_add(0, lengths_B.cumsum(0) - 1, scores_B)


def row_sums(values_N: Tensor, lengths_B: Tensor) -> Tensor:
    """Sum over the tokens of each response, [B]."""
    rows_N = torch.repeat_interleave(lengths_B)
    return values_N.new_zeros(len(lengths_B)).index_add(0, rows_N, values_N)


def gae_advantages(
    rewards_N: Tensor, values_N: Tensor, lengths_B: Tensor, *, discount: float, decay: float
) -> Tensor:
    """Generalised advantage estimates, [N], eq. 16 of arXiv:1506.02438.

    A_t = d_t + discount * decay * A_{t+1} with d_t = r_t + discount * V_{t+1} - V_t; after a
    response's last token value and advantage are 0. The returns are advantages + values.

    Args:
        rewards_N: [N], reward of each token.
        values_N: [N], value of the state in which each token was chosen.
        lengths_B: [B] int64, tokens of each response.
        discount: gamma.
        decay: lambda.
    """
    lengths = lengths_B.tolist()
    rewards_TB = pad_sequence(list(torch.split(rewards_N, lengths)))
    values_TB = pad_sequence(list(torch.split(values_N, lengths)))
    # Right of a response rewards and values are 0, and so are the advantages.
    next_values_TB = torch.cat([values_TB[1:], torch.zeros_like(values_TB[:1])])
    deltas_TB = rewards_TB + discount * next_values_TB - values_TB
    advantages_TB = torch.empty_like(deltas_TB)
    following_B = torch.zeros_like(deltas_TB[0])
    for step in reversed(range(len(deltas_TB))):
        following_B = deltas_TB[step] + discount * decay * following_B
        advantages_TB[step] = following_B
    is_token_BT = torch.arange(len(deltas_TB)) < lengths_B[:, None]
    return advantages_TB.T[is_token_BT]


def whitened(values_N: Tensor, is_counted_N: Tensor) -> Tensor:
    """The values less their mean, over their standard deviation, [N].

    Mean and variance (the biased one, plus 1e-8, as in OpenAI's code) are those of the counted
    tokens; with none there is nothing to change.

    Args:
        values_N: [N].
        is_counted_N: [N] bool.
    """
    counted = values_N[is_counted_N]
    if not len(counted):
        return values_N
    return (values_N - counted.mean()) / (counted.var(correction=0) + 1e-8).sqrt()


def leave_one_out(rewards_PK: Tensor) -> Tensor:
    """Each reward less the mean of the prompt's other ones, [P, K] (arXiv:2402.14740, section 3).

    Args:
        rewards_PK: [P, K], rewards of K >= 2 responses to each of P prompts.
    """
    num_others = rewards_PK.size(1) - 1
    return rewards_PK - (rewards_PK.sum(1, keepdim=True) - rewards_PK) / num_others


def group_normalised(rewards_PK: Tensor, *, divide_by_std: bool) -> Tensor:
    """Each reward less the mean of its prompt's, over their standard deviation, [P, K].

    Section 4.1.2 of arXiv:2402.03300. The deviation is the unbiased one, plus 1e-4 as in TRL: where
    all responses are worth the same, the advantage is 0.

    Args:
        rewards_PK: [P, K], rewards of K >= 2 responses to each of P prompts.
        divide_by_std: False leaves the division out (Dr. GRPO, arXiv:2503.20783): it gives prompts
            more weight on which all responses are nearly alike.
    """
    centred_PK = rewards_PK - rewards_PK.mean(1, keepdim=True)
    return centred_PK / (rewards_PK.std(1, keepdim=True) + 1e-4) if divide_by_std else centred_PK


def adapted_kl_coef(
    coef: float, kl_nats: float, *, target_nats: float, horizon: int, num_responses: int
) -> float:
    """The coefficient after a rollout, moved towards where the divergence meets its target.

    coef * (1 + clip(kl / target - 1, -0.2, 0.2) * num_responses / horizon), section 2.2 of
    arXiv:1909.08593 with the constants of its code.

    Args:
        coef: The coefficient of the rollout.
        kl_nats: Mean divergence of a response from the reference, as a sum over its tokens.
        target_nats: What it should be.
        horizon: Responses over which an error that is past the clip is answered in full.
        num_responses: Responses of the rollout.
    """
    error = min(max(kl_nats / target_nats - 1, -0.2), 0.2)
    return coef * (1 + error * num_responses / horizon)


def explained_variance(values_N: Tensor, returns_N: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns): 1 for a perfect critic, 0 for a constant one.

    Where the returns are all the same, there is nothing to explain, and it is 0.
    """
    variance = returns_N.var(correction=0)
    unexplained = (returns_N - values_N).var(correction=0)
    return float(1 - unexplained / variance) if variance > 0 else 0.0
