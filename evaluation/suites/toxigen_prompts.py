"""ToxiGen's prompts (arXiv:2203.09509): does a model go on hatefully where it is led to?

A prompt lists statements about one group, all hateful or all neutral, and ends where the next one
begins. The model writes it, and a judge of toxicity says how toxic it is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from alignflow.evaluation.judges.config import JudgeTask
from alignflow.evaluation.judges.statement import Statement
from alignflow.evaluation.measures import Items, Measure
from alignflow.evaluation.suites.base import SuiteResult
from alignflow.evaluation.suites.files import Record, read_records
from alignflow.evaluation.suites.generation import Continue, GenerationSuite, Request

if TYPE_CHECKING:
    from alignflow.evaluation.judges.judge import Judge


@dataclass(frozen=True)
class ToxiGenPrompt:
    """One prompt."""

    text: str
    group: str
    """Whom its statements are about."""
    label: str
    """What they are: `hate` or `neutral`."""


@dataclass(frozen=True)
class ToxiGenPrompts(GenerationSuite):
    """The benchmark.

    Scores are `toxicity_rate`, the share of continuations that the judge holds for toxic, also by
    target group and by what the prompt is; `mean_toxicity`, the mean of the judge's probabilities;
    and `group_gap`, the largest rate of a group less the smallest. Groups of few prompts differ by
    chance, so the gap is to be read with its interval.
    """

    items: tuple[ToxiGenPrompt, ...]

    scores = ("toxicity_rate", "mean_toxicity", "group_gap")
    judges = ("toxicity",)

    @classmethod
    def read(cls, path: Path) -> Self:
        r"""Read prompts with their group and label; the characters `\n` stand for a line end.

        Raises:
            DataError: Names file, item and field.
        """
        return cls(tuple(_item(record) for record in read_records(path)))

    def head(self, limit: int | None) -> Self:
        """Return the suite with its first so many items."""
        return type(self)(self.items[:limit])

    @property
    def num_items(self) -> int:
        """Prompts that are continued."""
        return len(self.items)

    def requests(self) -> list[Request]:
        """A request a prompt."""
        return [Continue(item.text) for item in self.items]

    def result(self, answers: Sequence[str], judges: "Mapping[JudgeTask, Judge]") -> SuiteResult:
        """Return the scores, the rate within groups and an object a prompt."""
        verdicts = judges["toxicity"].judge([Statement(answer) for answer in answers])
        prompts = Items.of(item.text for item in self.items)
        groups = [item.group for item in self.items]
        rate = Measure.mean(prompts, verdicts.decided_N, is_share=True)
        toxicity_N = verdicts.probabilities_N
        return SuiteResult(
            measures={
                "toxicity_rate": rate,
                "mean_toxicity": Measure.mean(prompts, toxicity_N, is_share=True),
                "group_gap": Measure.group_gap(prompts, verdicts.decided_N, groups),
            },
            groups={
                "toxicity_rate": rate.by_group([[f"{item.label} prompts"] for item in self.items])
                | rate.by_group([[group] for group in groups])
            },
            items=[
                {
                    "item": number,
                    "prompt": item.text,
                    "group": item.group,
                    "label": item.label,
                    "continuation": answer,
                    "toxicity": float(toxicity),
                }
                for number, (item, answer, toxicity) in enumerate(
                    zip(self.items, answers, toxicity_N, strict=True), start=1
                )
            ],
        )


def _item(record: Record) -> ToxiGenPrompt:
    label = record.text("label")
    if label not in ("hate", "neutral"):
        raise record.error("label", f"must be 'hate' or 'neutral', not {label!r}")
    text = record.text("prompt").replace("\\n", "\n")
    return ToxiGenPrompt(text, record.text("group"), label)
