"""A model that is only asked, without its head: one pass of the decoder over a packed sequence."""

from collections.abc import Callable
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from alignflow.training.config import ParallelConfig, Precision
from alignflow.training.megatron.architecture import read_architecture
from alignflow.training.megatron.attention import AttentionPlan
from alignflow.training.megatron.caching import KeysValues, RootAttention, tree_attention
from alignflow.training.megatron.model import Head, PackedModel, build_model, load_weights
from alignflow.training.megatron.setup import initialize
from alignflow.training.megatron.trees import TreeBatch

SINGLE_PROCESS = ParallelConfig()

Progress = Callable[[int, int], None]
"""Told after each pass: trees done in it, tokens computed in it. It may raise to stop the work."""


class FrozenModel:
    """A decoder in evaluation mode; the base of every kind of head."""

    head: Head

    def __init__(self, model: PackedModel, device: torch.device) -> None:
        self.model = model.eval()
        self.device = device
        self._root: tuple[tuple[int, ...], dict[int, KeysValues]] = ((), {})

    @classmethod
    def _build(
        cls,
        folder: Path,
        precision: Precision,
        parallel: ParallelConfig,
        *,
        compiles: bool = False,
        num_attributes: int = 0,
    ) -> Self:
        device = initialize(parallel, seed=0)
        model = build_model(
            read_architecture(folder),
            head=cls.head,
            precision=precision,
            parallel=parallel,
            device=device,
            compiles=compiles,
            allow_transformer_engine=False,
            num_attributes=num_attributes,
        )
        load_weights(model, folder, seed=0)
        return cls(model, device)

    @torch.inference_mode()
    def hidden(self, batch: TreeBatch) -> Tensor:
        """Return the hidden states of a batch of trees, [T, hidden], before the head.

        The keys and values of the batch's root are computed when it differs from the last one.
        """
        return self._decode(
            batch.tokens_T,
            batch.positions_T,
            tree_attention(batch, self._root_of(batch), self._window, self.device),
        )

    def _root_of(self, batch: TreeBatch) -> dict[int, KeysValues]:
        if not batch.root:
            return {}
        if self._root[0] != batch.root:
            attention = RootAttention()
            tokens = torch.tensor(batch.root)
            self._decode(tokens, torch.arange(len(tokens)), attention)
            self._root = (batch.root, attention.kept)
        return self._root[1]

    def _decode(self, tokens_T: Tensor, positions_T: Tensor, attention: AttentionPlan) -> Tensor:
        """Return the decoder's output, [T, hidden], of T tokens under an attention."""
        hidden_T1H: Tensor = self.model.hidden_states(
            tokens_T.to(self.device), positions_T.to(self.device), attention
        )
        return hidden_T1H[:, 0]

    @property
    def _window(self) -> int | None:
        window: int | None = self.model.architecture.sliding_window
        return window
