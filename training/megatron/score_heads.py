"""Heads that read scores off a hidden state: of reward models and critics, and of attributes."""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alignflow.training.megatron.weights import Weights

REWARD_HEAD_FILE = "reward_head.safetensors"
ATTRIBUTE_HEAD_FILE = "attribute_head.safetensors"


class RewardHead(nn.Module):
    """A linear layer from a hidden state to a score or a value, in float32 and without bias.

    Every tensor-parallel rank holds the same weight.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, hidden_size, dtype=torch.float32))
        self.weight.is_reward_head = True  # type: ignore[attr-defined]

    def forward(self, hidden_RH: Tensor) -> Tensor:
        """Return scores, [R] float32, of hidden states, [R, hidden]."""
        return F.linear(hidden_RH.float(), self.weight)[:, 0]

    @torch.no_grad()
    def initialize(self, model_dir: Path, *, seed: int) -> None:
        """Take the weight of the folder's reward head, or draw it from N(0, 1 / (hidden + 1)).

        The standard deviation is that of arXiv:2009.01325, appendix B.1.
        """
        path = model_dir / REWARD_HEAD_FILE
        if path.is_file():
            shape = (1, self.weight.size(1))
            self.weight.copy_(Weights.of_file(path).read("weight", shape))
        else:
            generator = torch.Generator().manual_seed(seed)
            drawn = torch.randn(self.weight.shape, generator=generator)
            self.weight.copy_(drawn / math.sqrt(self.weight.size(1) + 1))


class AttributeHead(nn.Module):
    """A linear layer from a hidden state to K attributes, in float32 and without bias.

    It gives how far each attribute is above its mean in the training set; a new head gives 0, and
    so the means themselves. Every tensor-parallel rank holds the same weight.
    """

    def __init__(self, hidden_size: int, num_attributes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_attributes, hidden_size, dtype=torch.float32))
        self.weight.is_reward_head = True  # type: ignore[attr-defined]

    def forward(self, hidden_RH: Tensor) -> Tensor:
        """Return attributes less their means, [R, K] float32, of hidden states, [R, hidden]."""
        return F.linear(hidden_RH.float(), self.weight)

    @torch.no_grad()
    def load(self, path: Path) -> None:
        """Take the weight of a file.

        Raises:
            DataError: The file has no weight of this shape.
        """
        num_attributes, hidden_size = self.weight.shape
        self.weight.copy_(Weights.of_file(path).read("weight", (num_attributes, hidden_size)))
