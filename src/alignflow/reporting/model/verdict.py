"""The decision of the gate."""

from alignflow.config import Config
from alignflow.reporting.model.fields import Text


class RuleOutcome(Config):
    """What became of one rule of the gate."""

    name: str
    """Name of the rule in the recipe."""
    passed: bool
    reason: Text
    """One sentence with the numbers: why it passed or failed."""


class VerdictSummary(Config):
    """The decision of the gate."""

    passed: bool
    rules: list[RuleOutcome] = []
    """Every rule, in the order of the recipe; empty where the recipe has none."""
