"""What every loss returns: a sum and a count, so that microbatches and ranks simply add."""

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class SummedLoss:
    """A loss summed over its units, with everything that is averaged beside it.

    A loss never divides and never communicates: the training step adds the parts of a global
    batch up and divides once, so neither microbatches nor rank counts change the result.
    """

    total: Tensor
    """Scalar float32, carries gradient."""
    units: Tensor
    """Scalar int64: what the total is divided by in the end (tokens, or pairs)."""
    metrics: dict[str, Tensor] = field(default_factory=dict)
    """Scalar sums over the same units, detached, by the name of their mean."""
