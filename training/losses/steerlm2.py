"""SteerLM 2.0: the policy's odds among sampled responses are drawn towards those of a target."""

import math

import torch
from torch import Tensor

from alignflow.training.losses.summed import SummedLoss


def steerlm2_loss(policy_PK: Tensor, sampler_PK: Tensor, target_PK: Tensor) -> SummedLoss:
    """Sum over prompts of KL(w || b), eq. 12 of arXiv:2406.08673, in nats.

    Of K responses y to a prompt x, drawn by a sampler Q'(y|a,x), w are the weights that make them a
    sample of the target P(y|a,x) ~ P(a|x,y) P(y|x) (eq. 6 and 7), and b those that make them one of
    the policy Q (eq. 10), each normalised over the K:

        w = softmax(log P(a|x,y) + log P(y|x) - log Q'(y|a,x)),  b = softmax(log Q - log Q').

    Its gradient is that of eq. 11, -sum over responses of (w - b) * grad log Q; a constant in the
    target of a prompt changes nothing. NeMo-Aligner computes the same and divides each prompt by
    the mean length of its responses besides, which the paper doesn't. A unit is a prompt.

    Among the metrics, `uniform_kl` is KL(w || 1/K), the loss of a policy that is the sampler, and
    `effective_samples` 1 / sum of w^2: K where all responses weigh alike, 1 where one has it all.

    Args:
        policy_PK: [P, K] float32, log-probabilities of the responses in nats, sums over tokens,
            carrying gradient.
        sampler_PK: [P, K] float32, the same under the model that sampled them, detached.
        target_PK: [P, K] float32, log P(a|x,y) + log P(y|x), detached.

    Raises:
        ValueError: The tensors differ in shape.
    """
    if not policy_PK.shape == sampler_PK.shape == target_PK.shape:
        raise ValueError(f"{policy_PK.shape=}, {sampler_PK.shape=}, {target_PK.shape=}")
    log_w_PK = (target_PK - sampler_PK).log_softmax(1)
    log_b_PK = (policy_PK - sampler_PK).log_softmax(1)
    w_PK = log_w_PK.exp()
    num_prompts, num_responses = policy_PK.shape
    return SummedLoss(
        total=(w_PK * (log_w_PK - log_b_PK)).sum(),
        units=torch.tensor(num_prompts, device=policy_PK.device),
        metrics={
            "uniform_kl": (w_PK * (log_w_PK + math.log(num_responses))).sum(),
            "effective_samples": (1 / w_PK.square().sum(1)).sum(),
        },
    )
