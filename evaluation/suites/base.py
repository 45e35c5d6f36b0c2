"""What a suite offers: requests for log-probabilities, and what the answers amount to."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from alignflow.evaluation.measures import Measure


@dataclass(frozen=True)
class ChoiceRequest:
    """One text and the continuations whose log-probabilities are wanted."""

    context: str
    choices: tuple[str, ...]
    """Each as it follows the context, word boundary included."""


@dataclass(frozen=True)
class SuiteResult:
    """Scores of one suite, by name without the suite's own."""

    measures: dict[str, Measure]
    """Each score as what its items contribute to it."""
    items: list[dict[str, Any]]
    """A JSON object an item, in file order."""
    groups: dict[str, dict[str, Measure]] = field(default_factory=dict)
    """Scores within groups of items: score, group, measure."""

    @property
    def scores(self) -> dict[str, float]:
        """The value of each measure; NaN where it isn't defined."""
        return {name: measure.value for name, measure in self.measures.items()}


class Suite(Protocol):
    """One benchmark, read from its file. No suite needs torch: the model is whoever answers."""

    @property
    def num_items(self) -> int:
        """Items that are judged."""
        ...

    def requests(self) -> list[ChoiceRequest]:
        """What the model is asked, a request an item."""
        ...

    def result(self, logprobs: Sequence[Sequence[float]]) -> SuiteResult:
        """Return the scores, given for every request a log-probability (nats) a choice."""
        ...
