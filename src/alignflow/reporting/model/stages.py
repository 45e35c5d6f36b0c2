"""The stages of the run."""

from typing import Literal

from pydantic import NonNegativeFloat, NonNegativeInt

from alignflow.config import Config


class StageRecord(Config):
    """One stage of the run: whether it was computed, how long it took, how much it moved."""

    name: str
    status: Literal["computed", "reused"]
    """Reused stages were taken from the store."""
    seconds: NonNegativeFloat
    """Wall-clock time, in this run or, of a reused stage, in the one that computed it."""
    num_processes: NonNegativeInt = 1
    """Processes (on GPUs: devices) of the stage's job; what a price counts."""
    tokens: NonNegativeInt | None = None
    """Tokens that went through the model, all processes together."""
    tokens_per_s: NonNegativeFloat | None = None
    peak_memory_bytes: NonNegativeInt | None = None
    """Largest memory of one process."""

    @property
    def process_hours(self) -> float:
        """Hours times processes."""
        return self.seconds * self.num_processes / 3600
