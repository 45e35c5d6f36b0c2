"""What a suite is: items of a file, a request an item, and what the answers amount to."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar

from alignflow.evaluation.judges.config import JudgeTask
from alignflow.evaluation.measures import Items, Measure
from alignflow.evaluation.suites.files import Record, read_records

if TYPE_CHECKING:
    from alignflow.evaluation.judges.judge import Judge

ItemT = TypeVar("ItemT")


@dataclass(frozen=True)
class ChoiceRequest:
    """One text and the continuations whose log-probabilities are wanted."""

    context: str
    choices: tuple[str, ...]
    """Each as it follows the context, word boundary included."""


@dataclass(frozen=True)
class TextRequest:
    """One text that the model goes on with."""

    prompt: str
    max_new_tokens: int | None = None
    """Longest answer; None for that of the job, `evaluation.generation`."""
    stops: tuple[str, ...] = ()
    """What ends the answer where it occurs in it; the answer is what stands before."""
    is_drawn: bool = False
    """Whether tokens are drawn, as `evaluation.generation` says; else the likeliest are taken."""


@dataclass(frozen=True)
class ChatRequest:
    """One conversation that the model answers through its chat template, likeliest tokens."""

    messages: tuple[dict[str, str], ...]


Request = ChoiceRequest | TextRequest | ChatRequest


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

    @classmethod
    def of_means(
        cls,
        judged: Items,
        values: Mapping[str, Sequence[float]],
        items: Sequence[Mapping[str, Any]],
        *,
        shares: Collection[str] = (),
        groups: Sequence[Sequence[str]] = (),
    ) -> Self:
        """Return scores that are means over the items.

        Args:
            judged: What tells the items apart, and which of them hang together.
            values: By score a value an item.
            items: What is told of each item, in file order.
            shares: Scores whose values lie in 0..1.
            groups: The groups of each item, where there are any.
        """
        measures = {
            name: Measure.mean(judged, of_items, is_share=name in shares)
            for name, of_items in values.items()
        }
        grouped = {name: measure.by_group(groups) for name, measure in measures.items()}
        return cls(
            measures=measures,
            items=[{"item": number, **item} for number, item in enumerate(items, start=1)],
            groups={name: by_group for name, by_group in grouped.items() if by_group},
        )


class Suite(ABC):
    """One benchmark, read from its file. No suite needs torch: the model is whoever answers."""

    @property
    @abstractmethod
    def num_items(self) -> int:
        """Items that are judged."""

    @abstractmethod
    def requests(self) -> Sequence[Request]:
        """What the model is asked, all of one kind."""

    @abstractmethod
    def result(self, answers: Sequence[Any]) -> SuiteResult:
        """Return the scores.

        Args:
            answers: For every `ChoiceRequest` a log-probability (nats) a choice; for every other
                request a text.
        """


@dataclass(frozen=True)
class FileSuite(Suite, Generic[ItemT]):
    """A suite whose items are the records of a file, with a request each.

    A class of one says which `scores` it has, what an `item` and its `request` are, and what the
    answers amount to in `result`.
    """

    items: tuple[ItemT, ...]
    judges: "Mapping[JudgeTask, Judge]" = field(default_factory=dict)
    """Those of `asks`, when answers are scored."""

    scores: ClassVar[tuple[str, ...]]
    """What `result` may score, as gate rules name it after the suite's own name."""
    asks: ClassVar[tuple[JudgeTask, ...]] = ()
    """Judges that `result` asks what the answers are worth."""
    judged_scores: ClassVar[tuple[str, ...]] = ()
    """What it scores besides `scores` where it has its judges; with none here it must have them."""

    @staticmethod
    @abstractmethod
    def item(record: Record) -> ItemT:
        """Return the item of one record.

        Raises:
            DataError: A field is missing or holds something else: `Record.text` and its like.
        """

    @abstractmethod
    def request(self, item: ItemT) -> Request:
        """Return what the model is asked about an item."""

    @classmethod
    def read(
        cls,
        path: Path,
        *,
        limit: int | None = None,
        judges: "Mapping[JudgeTask, Judge] | None" = None,
    ) -> Self:
        """Read a JSON array, JSON lines, CSV or Parquet; all of it, and keep the first so many.

        Raises:
            DataError: Names file, item and field.
        """
        return cls(tuple(cls.item(record) for record in read_records(path))[:limit], judges or {})

    @property
    def num_items(self) -> int:
        """Items that are judged."""
        return len(self.items)

    def requests(self) -> Sequence[Request]:
        """A request an item."""
        return [self.request(item) for item in self.items]
