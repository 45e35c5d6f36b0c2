"""Suites whose items a model answers in its own words."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from alignflow.evaluation.judges.config import JudgeTask
from alignflow.evaluation.suites.base import SuiteResult

if TYPE_CHECKING:
    from alignflow.evaluation.judges.judge import Judge


@dataclass(frozen=True)
class Continue:
    """A text to go on with, up to the end of the line; what follows is drawn at random."""

    text: str


@dataclass(frozen=True)
class Answer:
    """A conversation to answer through the chat template; the answer is the likeliest."""

    messages: tuple[dict[str, str], ...]


Request = Continue | Answer


class GenerationSuite(ABC):
    """One benchmark of this kind, read from its file."""

    scores: ClassVar[tuple[str, ...]]
    """What `result` scores, as gate rules name it after the suite's own name."""
    judges: ClassVar[tuple[JudgeTask, ...]] = ()
    """Judges that it asks."""

    @property
    @abstractmethod
    def num_items(self) -> int:
        """Items that are judged."""

    @abstractmethod
    def requests(self) -> list[Request]:
        """What the model is asked, a request an item."""

    @abstractmethod
    def result(self, answers: Sequence[str], judges: "Mapping[JudgeTask, Judge]") -> SuiteResult:
        """Return the scores, given an answer an item and a judge for each of `judges`."""
