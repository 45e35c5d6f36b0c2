"""Attributes of answers: which of them a model predicts, and batches that hold people's ratings."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from alignflow.data_validation.canonical import ATTRIBUTES
from alignflow.errors import DataError
from alignflow.jobs.run_folder import write_atomically
from alignflow.training.batch import PackedBatch
from alignflow.training.packing import Items, pack
from alignflow.training.rows import TokenRows

ATTRIBUTES_FILE = "attributes.json"


@dataclass(frozen=True)
class AttributeScale:
    """What the K outputs of an attribute model mean: an output is the rating less its mean."""

    names: tuple[str, ...]
    """[K] some of `ATTRIBUTES`, in their order."""
    means: tuple[float, ...]
    """[K] mean rating over the training set."""

    @property
    def num_attributes(self) -> int:
        """K."""
        return len(self.names)

    @classmethod
    def of_rows(cls, rows: TokenRows) -> Self:
        """Return the scale of the attributes that some of the rows have a rating of.

        Raises:
            DataError: No row has a rating.
        """
        is_rated_A = ~np.isnan(rows.labels_IL).all(axis=0)
        if not is_rated_A.any():
            raise DataError("no training row has a rating; give some attributes.")
        rated = [(column, ATTRIBUTES[column]) for column in np.flatnonzero(is_rated_A)]
        return cls(
            tuple(name for _, name in rated),
            tuple(float(np.nanmean(rows.labels_IL[:, at], dtype=np.float64)) for at, _ in rated),
        )

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read the scale of an attribute model's folder.

        Raises:
            DataError: There is none, or it is broken.
        """
        path = folder / ATTRIBUTES_FILE
        try:
            scale = json.loads(path.read_text(encoding="utf-8"))
            names = tuple(str(name) for name in scale["names"])
            means = tuple(float(mean) for mean in scale["means"])
        except FileNotFoundError:
            raise DataError(
                f"{path}: no such file; give the folder of an attribute model."
            ) from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: must hold the lists names and means ({error!r}).") from None
        if len(names) != len(means) or not names or not set(names) <= set(ATTRIBUTES):
            raise DataError(f"{path}: must hold as many means as names of known attributes.")
        return cls(names, means)

    def save(self, folder: Path) -> None:
        """Write the scale into a folder."""
        write_atomically(folder / ATTRIBUTES_FILE, json.dumps(asdict(self), indent=2) + "\n")

    def applied(self, raw_BK: Tensor) -> Tensor:
        """Return what outputs of the model mean: ratings, [B, K]."""
        return raw_BK + torch.tensor(self.means, dtype=raw_BK.dtype)

    def labels_of(self, rows: TokenRows) -> Tensor:
        """Return the ratings of all rows less their means, [R, K] float32; NaN where unknown."""
        columns = [ATTRIBUTES.index(name) for name in self.names]
        labels_RK = torch.from_numpy(rows.labels_IL[:, columns])
        return labels_RK - torch.tensor(self.means, dtype=torch.float32)


@dataclass(frozen=True)
class RatedBatch(PackedBatch):
    """A packed batch of conversations and the ratings of their last answers."""

    labels_RK: Tensor
    """[R, K] float32, each rating less the attribute's mean; NaN where it isn't known."""


def pack_rated(rows: TokenRows, items: Items, labels_RK: Tensor) -> RatedBatch:
    """Return packed conversations with their ratings.

    Args:
        rows: Tokenised conversations.
        items: Those to pack.
        labels_RK: [all rows, K] what `AttributeScale.labels_of` returns.
    """
    batch = pack(rows, items)
    # A batch without items has a row nevertheless, of which nothing is known.
    labels = torch.full((batch.num_rows, labels_RK.size(1)), torch.nan)
    labels[: len(items)] = labels_RK[torch.from_numpy(items)]
    return RatedBatch(**vars(batch), labels_RK=labels)
