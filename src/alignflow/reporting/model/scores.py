"""What the models score, one by one and against one another."""

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, model_validator

from alignflow.config import Config
from alignflow.reporting.model.fields import Interval, ModelRole, Text

_MIN_ITEMS = 10
"""Fewer items tell too little even of their own spread."""


class Difference(Config):
    """What the aligned model scores above another, over the items that both were judged on."""

    value: float
    interval: Interval | None = None
    """None where it isn't known, such as with a single item."""
    num_items: NonNegativeInt


class GroupScores(Config):
    """One score within a group of items."""

    values: dict[ModelRole, float] = {}
    intervals: dict[ModelRole, Interval] = {}
    num_items: NonNegativeInt


class ScoreRow(Config):
    """One score of every model that was judged."""

    name: str
    """Name as in the recipe and in MLflow, such as `truthfulness/mc2`."""
    label: str
    """The name for a person, such as `Truthfulness, MC2`."""
    meaning: str = ""
    """One phrase that says what the number counts."""
    is_share: bool = False
    """Whether values lie in 0..1 and are shown as percentages, differences as points."""
    unit: str = ""
    """Unit of a value that is no share, such as `nats a token`."""
    higher_is_better: bool | None = None
    """Direction of the good; None where a difference is neither good nor bad."""
    values: dict[ModelRole, float] = {}
    """Score of each model that has one."""
    intervals: dict[ModelRole, Interval] = {}
    """Confidence interval of each value, where known."""
    differences: dict[ModelRole, Difference] = {}
    """How far the aligned model is above each other one."""
    num_items: NonNegativeInt | None = None
    """Items that were judged."""
    groups: dict[Text, GroupScores] = {}
    """The score within groups of items, such as the statements about one group of people."""

    @property
    def difference(self) -> float | None:
        """How far the aligned model is above the base model; None unless both have the score."""
        return self.differences["base"].value if "base" in self.differences else None

    @property
    def change(self) -> Literal["better", "worse", "same", "neutral", "unclear"] | None:
        """What the difference from the base model means.

        `unclear` is a difference whose interval holds 0 or isn't known, or over too few items to
        know one; `neutral` is one of a score without a direction, None one that can't be formed.
        """
        if "base" not in self.differences:
            return None
        difference = self.differences["base"]
        if difference.value == 0:
            return "same"
        if self.higher_is_better is None:
            return "neutral"
        interval = difference.interval
        if difference.num_items < _MIN_ITEMS or interval is None or interval[0] <= 0 <= interval[1]:
            return "unclear"
        return "better" if (difference.value > 0) == self.higher_is_better else "worse"


class WinRate(Config):
    """How often the aligned model's answers beat another's to the same prompts."""

    against: ModelRole
    num_prompts: NonNegativeInt
    rate: float
    """Share of wins, a tie counting one half."""
    interval: Interval | None = None
    ties: float
    """Share of ties."""
    length_controlled: float | None = None
    """The share that would be were both models' answers equally long; None where all differ
    alike in length."""
    length_controlled_interval: Interval | None = None
    tokens: float
    """Mean length of the aligned model's answers."""
    other_tokens: float
    """Mean length of the other's."""


class Distribution(Config):
    """How the values of the items spread that one score is the mean of."""

    title: str
    unit: str = ""
    label: str = ""
    """Whose values these are, where not those of the models that were judged."""
    edges: Annotated[list[float], Field(min_length=2)]
    """Bounds of the bins, rising, one more than bins."""
    counts: dict[ModelRole, list[NonNegativeInt]]
    """Items in each bin, of every model that has any."""
    means: dict[ModelRole, float]

    @model_validator(mode="after")
    def _bins_hold_items(self) -> Self:
        for role, counts in self.counts.items():
            if len(counts) != len(self.edges) - 1 or not sum(counts):
                raise ValueError(f"counts.{role} must be {len(self.edges) - 1} and not all 0")
        return self


class WorstItem(Config):
    """An item of a benchmark that the aligned model does badly on."""

    suite: str
    """Label of its suite's score, such as `Truthfulness, MC2`."""
    text: Text
    """The item, such as a question or a statement; hateful or false as it may be."""
    said: Text = ""
    """What the aligned model holds of it."""
    value: float
    """What the item scores, 0..1."""
    base_value: float | None = None
    """What it scores for the base model."""
