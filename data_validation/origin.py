"""Where a row that was repaired had been refused."""

from typing import Any, Self

from pydantic import ValidationError

from alignflow.config import Config

ORIGIN_KEY = "requeued_from"
"""Under which a repaired row says where it was refused."""


class Origin(Config):
    """The row that a repaired one was."""

    file: str
    line: int
    reason: str
    """Why it was refused, a key of `REASONS`."""

    @classmethod
    def of(cls, values: dict[str, Any] | None) -> Self | None:
        """Return the origin that a row names, or None."""
        if values is None or ORIGIN_KEY not in values:
            return None
        try:
            return cls.model_validate(values[ORIGIN_KEY])
        except ValidationError:
            return None
