"""TruthfulQA, generation (arXiv:2109.07958): are the model's own answers nearer to true ones?

The model continues the QA preset of the paper greedily, at most 50 tokens and up to the next
question. Answers are compared with the reference answers by BLEU and ROUGE, as in the paper and in
lm-evaluation-harness's task `truthfulqa_gen` (version 3), whose prompt leaves the `A:` of the last
answer to the model. Judges of truth and of information, where there are any, say more.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from alignflow.evaluation.judges.statement import Statement
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


@dataclass(frozen=True)
class OpenQuestion:
    """One question and its reference answers."""

    question: str
    true: tuple[str, ...]
    false: tuple[str, ...]
    origin: Origin = field(default_factory=Origin, compare=False)

    @property
    def nearby_true(self) -> tuple[str, ...]:
        """The true answers that overlaps are taken with: no comment is true of every question."""
        return tuple(dict.fromkeys([*self.true, _NO_COMMENT]))


class TruthfulQAGeneration(FileSuite[OpenQuestion]):
    """`TruthfulQA.csv`, or the hub's `generation` rows."""

    scores = tuple(f"{name}_{kind}" for name in MEASURES for kind in ("max", "diff", "acc"))
    asks = ("truth", "information")
    judged_scores = ("true", "informative", "true_and_informative")

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
        return OpenQuestion(question.strip(), tuple(true), tuple(false), origin)

    def request(self, item: OpenQuestion) -> TextRequest:
        """Return the few-shot prompt and the question."""
        prompt = f"{QA_PRESET}\n\nQ: {item.question}\nA:"
        return TextRequest(prompt, max_new_tokens=_MAX_NEW_TOKENS, stops=("Q:",))

    def result(self, answers: Sequence[str]) -> SuiteResult:
        """Return the scores, each also by category, and an object a question."""
        texts = [answer.strip() for answer in answers]
        scores = [
            truth_by_overlap(text, item.nearby_true, item.false)
            for item, text in zip(self.items, texts, strict=True)
        ]
        by_name = {name: [of_answer[name] for of_answer in scores] for name in self.scores}
        if self.judges:
            by_name |= self._judged(texts)
        rows = [
            {
                "question": item.question,
                "answer": text,
                **{name: values[row] for name, values in by_name.items()},
            }
            for row, (item, text) in enumerate(zip(self.items, texts, strict=True))
        ]
        questions = Items.of(
            ([item.question, *item.true, *item.false] for item in self.items),
            sources=(item.origin.page or item.question for item in self.items),
        )
        return SuiteResult.of_means(
            questions,
            by_name,
            rows,
            shares=[*(name for name in self.scores if name.endswith("_acc")), *self.judged_scores],
            groups=[item.origin.groups for item in self.items],
        )

    def _judged(self, texts: Sequence[str]) -> dict[str, list[float]]:
        """Return what the judges say, a value an answer."""
        # Imported here: scikit-learn takes a second that reading a file doesn't need.
        from alignflow.evaluation.judges.judge import judge_answers

        answers = [
            Statement(text, item.true, item.false, item.question)
            for item, text in zip(self.items, texts, strict=True)
        ]
        judged = judge_answers(
            answers, truth=self.judges["truth"], information=self.judges["information"]
        )
        return {name: values.tolist() for name, values in judged.items()}


def _listed(record: Record, name: str) -> list[str]:
    answers = [with_full_stop(answer) for answer in record.texts(name) if answer.strip()]
    if not answers:
        raise record.error(name, "holds no answer")
    return answers
