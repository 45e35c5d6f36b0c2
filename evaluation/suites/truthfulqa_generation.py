"""TruthfulQA, generation (arXiv:2109.07958): are the model's own answers nearer to true ones?

The model continues the QA preset of the paper greedily, at most 50 tokens and up to the next
question. Answers are compared with the reference answers by BLEU and ROUGE, as in the paper and in
lm-evaluation-harness's task `truthfulqa_gen` (version 3), whose prompt leaves the `A:` of the last
answer to the model.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from alignflow.evaluation.measures import Items
from alignflow.evaluation.overlap import MEASURES, truth_by_overlap
from alignflow.evaluation.suites.base import FileSuite, SuiteResult, TextRequest
from alignflow.evaluation.suites.files import Record
from alignflow.evaluation.suites.truthfulqa import (
    QA_PRESET,
    Origin,
    answers_between_semicolons,
    with_full_stop,
)

_MAX_NEW_TOKENS = 50
_NO_COMMENT = "I have no comment."
"""True of every question, and what the preset shows."""


@dataclass(frozen=True)
class OpenQuestion:
    """One question and its reference answers."""

    question: str
    true: tuple[str, ...]
    false: tuple[str, ...]
    origin: Origin = field(default_factory=Origin, compare=False)


class TruthfulQAGeneration(FileSuite[OpenQuestion]):
    """`TruthfulQA.csv`, or the hub's `generation` rows."""

    scores = tuple(f"{name}_{kind}" for name in MEASURES for kind in ("max", "diff", "acc"))

    @staticmethod
    def item(record: Record) -> OpenQuestion:
        """Return a question and its reference answers."""
        origin = Origin()
        if record.has("Question"):
            origin = Origin.of(record)
            question = record.text("Question")
            true = answers_between_semicolons(record, "Correct Answers")
            false = answers_between_semicolons(record, "Incorrect Answers")
        else:
            question = record.text("question")
            true, false = (_listed(record, f"{kind}_answers") for kind in ("correct", "incorrect"))
        true = list(dict.fromkeys([*true, _NO_COMMENT]))
        return OpenQuestion(question.strip(), tuple(true), tuple(false), origin)

    def request(self, item: OpenQuestion) -> TextRequest:
        """Return the few-shot prompt and the question."""
        prompt = f"{QA_PRESET}\n\nQ: {item.question}\nA:"
        return TextRequest(prompt, max_new_tokens=_MAX_NEW_TOKENS, stops=("Q:",))

    def result(self, answers: Sequence[str]) -> SuiteResult:
        """Return the scores, each also by category, and an object a question."""
        texts = [answer.strip() for answer in answers]
        scores = [
            truth_by_overlap(text, item.true, item.false)
            for item, text in zip(self.items, texts, strict=True)
        ]
        rows = [
            {"question": item.question, "answer": text, **of_answer}
            for item, text, of_answer in zip(self.items, texts, scores, strict=True)
        ]
        by_name = {name: [of_answer[name] for of_answer in scores] for name in self.scores}
        questions = Items.of(
            ([item.question, *item.true, *item.false] for item in self.items),
            sources=(item.origin.page or item.question for item in self.items),
        )
        return SuiteResult.of_means(
            questions,
            by_name,
            rows,
            shares=[name for name in self.scores if name.endswith("_acc")],
            groups=[item.origin.groups for item in self.items],
        )


def _listed(record: Record, name: str) -> list[str]:
    answers = [with_full_stop(answer) for answer in record.texts(name) if answer.strip()]
    if not answers:
        raise record.error(name, "holds no answer")
    return answers
