"""Why a training job stops itself. The worker writes the `kind` into `failure.json`."""

from alignflow.errors import AlignflowError
from alignflow.jobs.spec import FailureKind


class TrainingError(AlignflowError, RuntimeError):
    """Base of the errors below; `kind` is what the job's failure is filed under."""

    kind = FailureKind.ERROR


class DivergedError(TrainingError):
    """A loss or a gradient is NaN, infinite or past the bound of the config."""

    kind = FailureKind.DIVERGED


class RewardHackingError(TrainingError):
    """The reward runs away from what it stands for: it grows while held-out accuracy falls.

    Args:
        message: What was seen.
        since_step: The step after which the model was still good.
    """

    kind = FailureKind.REWARD_HACKING

    def __init__(self, message: str, *, since_step: int) -> None:
        super().__init__(message)
        self.since_step = since_step


class ReferenceMismatchError(TrainingError):
    """The first step shows that policy and reference are not the same model."""


class KLBoundError(DivergedError):
    """The policy has moved further from its initial one than the config allows."""


class LengthBoundError(DivergedError):
    """Responses have become much longer, or much shorter, than at the start."""


class SamplerMismatchError(TrainingError):
    """Sampling and training give a response different log-probabilities."""


class RatioMismatchError(TrainingError):
    """Before the first update from a rollout, the policy is not the one that sampled it."""
