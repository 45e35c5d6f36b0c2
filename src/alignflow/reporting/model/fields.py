"""What the parts of the page have in common."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator


def _without_lone_surrogates(value: Any) -> Any:
    """Replace halves of surrogate pairs, which JSON may hold and UTF-8 can't, by U+FFFD."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return value


Text = Annotated[str, BeforeValidator(_without_lone_surrogates)]
"""Text that comes from data or from a model, any characters at all; escaped where it is shown."""

ModelRole = Literal["base", "sft", "champion", "aligned"]
"""The three models that a pipeline judges, and the one that serves now."""

ROLES: tuple[ModelRole, ...] = ("base", "sft", "champion", "aligned")

ROLE_LABELS: dict[ModelRole, str] = {
    "base": "base",
    "sft": "SFT",
    "champion": "champion",
    "aligned": "aligned",
}

MODEL_LABELS: dict[ModelRole, str] = {"base": "A", "aligned": "B"}
"""Of two models side by side, of which the second takes the part of the aligned one."""

Interval = tuple[float, float]
"""Bounds of a 95 % confidence interval, in the unit of the value."""
