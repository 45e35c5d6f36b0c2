"""Models that judge a conversation by its last token: reward models and attribute models."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor

from alignflow.training.attributes import AttributeScale
from alignflow.training.config import ParallelConfig, Precision
from alignflow.training.megatron.frozen import SINGLE_PROCESS, FrozenModel, Progress, all_of
from alignflow.training.megatron.model import Head
from alignflow.training.megatron.score_heads import ATTRIBUTE_HEAD_FILE
from alignflow.training.megatron.trees import Branch, Tree, by_tree, common_root, pack_trees
from alignflow.training.reward_scale import RewardScale


class Scale(Protocol):
    """What the output of a head means."""

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read the scale of a model's folder."""

    @property
    def num_attributes(self) -> int:
        """Outputs of a head that has several; 0 where it has one."""

    def applied(self, raw_B: Tensor) -> Tensor:
        """Return what B outputs of the head mean, float64."""


ScaleT = TypeVar("ScaleT", bound=Scale)


class Judge(FrozenModel, Generic[ScaleT]):
    """A model whose head reads the last token, in the scale that was recorded for it."""

    scale_type: type[ScaleT]
    scale: ScaleT

    @classmethod
    def load(
        cls, folder: Path, *, precision: Precision, parallel: ParallelConfig = SINGLE_PROCESS
    ) -> Self:
        """Load a model folder with its head and its scale.

        Args:
            folder: The model.
            precision: Type of its weights.
            parallel: Layout of the job; each rank holds the whole model.

        Raises:
            DataError: The folder holds no model of this kind that can be loaded.
        """
        scale = cls.scale_type.load(folder)
        judge = cls._build(folder, precision, parallel, num_attributes=scale.num_attributes)
        judge.scale = scale
        return judge

    @torch.inference_mode()
    def passes(
        self, trees: Sequence[Tree], *, max_tokens: int
    ) -> Iterator[tuple[list[list[Any]], int]]:
        """Yield what the head gives for each branch of the next trees, and the tokens computed.

        It is in the model's scale: see `RewardModel.score` and `AttributeModel.rate_trees`.
        """
        for packed, batch in pack_trees(
            trees, max_tokens=max_tokens, root=common_root(trees), feed_last_token=True
        ):
            raw_B = self.model.output_layer(self.hidden(batch)[batch.branch_last_B])
            yield by_tree(packed, self.scale.applied(raw_B.double().cpu())), batch.num_tokens

    def row_passes(
        self, rows: Sequence[Sequence[int]], *, max_tokens: int
    ) -> Iterator[tuple[list[Any], int]]:
        """Yield what the head gives for the next rows of at least two tokens, as `passes` does."""
        for found, num_tokens in self.passes(_as_trees(rows), max_tokens=max_tokens):
            yield [value for (value,) in found], num_tokens


class RewardModel(Judge[RewardScale]):
    """A reward model."""

    head: Head = "reward"
    scale_type = RewardScale

    def score(
        self, trees: Sequence[Tree], *, max_tokens: int, progress: Progress | None = None
    ) -> list[list[float]]:
        """Return for each tree the reward at the last token of each branch.

        Rewards are in standard deviations from the mean over the set of `reward_scale.json`.
        """
        return all_of(self.passes(trees, max_tokens=max_tokens), progress)


class AttributeModel(Judge[AttributeScale]):
    """A model that rates answers by the attributes of SteerLM."""

    head: Head = "attributes"
    scale_type = AttributeScale

    @classmethod
    def load(
        cls, folder: Path, *, precision: Precision, parallel: ParallelConfig = SINGLE_PROCESS
    ) -> Self:
        """Load an attribute model's folder, as every judge is loaded."""
        judge = super().load(folder, precision=precision, parallel=parallel)
        judge.model.output_layer.load(folder / ATTRIBUTE_HEAD_FILE)
        return judge

    def rate_trees(
        self, trees: Sequence[Tree], *, max_tokens: int, progress: Progress | None = None
    ) -> list[list[list[float]]]:
        """Return for each tree the attributes of the conversation that ends with each branch.

        They come in the order of `scale.names`, and are neither rounded nor kept within 0 to 4.
        """
        return all_of(self.passes(trees, max_tokens=max_tokens), progress)

    def rate(
        self, rows: Sequence[Sequence[int]], *, max_tokens: int, progress: Progress | None = None
    ) -> list[list[float]]:
        """Return the attributes of each row of at least two tokens, as in `rate_trees`."""
        return all_of(self.row_passes(rows, max_tokens=max_tokens), progress)


def _as_trees(rows: Sequence[Sequence[int]]) -> list[Tree]:
    return [Tree(row[:1], [Branch.scored(row[1:])]) for row in rows]
