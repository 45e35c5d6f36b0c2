"""The scale of a reward model: by which its scores can be read."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from torch import Tensor

from alignflow.errors import DataError

REWARD_SCALE_FILE = "reward_scale.json"


@dataclass(frozen=True)
class RewardScale:
    """Mean and standard deviation of a reward model's scores over a set of answers."""

    mean: float
    std: float
    num_attributes = 0

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read the scale of a reward model's folder.

        Raises:
            DataError: There is none, or it is broken.
        """
        path = folder / REWARD_SCALE_FILE
        try:
            scale = json.loads(path.read_text(encoding="utf-8"))
            mean, std = float(scale["mean"]), float(scale["std"])
        except FileNotFoundError:
            raise DataError(f"{path}: no such file; give the folder of a reward model.") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: must hold the numbers mean and std ({error!r}).") from None
        if not std > 0:
            raise DataError(f"{path}: std must be above 0, not {std}.")
        return cls(mean, std)

    def applied(self, raw_B: Tensor) -> Tensor:
        """Return scores as standard deviations from the mean, [B]."""
        return (raw_B - self.mean) / self.std
