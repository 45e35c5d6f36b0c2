"""The job of the judge of answers: how good it is, and whose answers it prefers."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from alignflow.evaluation import scorers
from alignflow.evaluation.answer_judge.comparisons import (
    Asked,
    compared_answers,
    held_out_comparisons,
)
from alignflow.evaluation.answer_judge.config import AnswerJudgeJob
from alignflow.evaluation.bootstrap import Floats
from alignflow.evaluation.measures import Items, Measure
from alignflow.evaluation.progress import Progress
from alignflow.evaluation.results import Results
from alignflow.evaluation.sharing import SharedWork
from alignflow.evaluation.suites.base import SuiteResult
from alignflow.evaluation.win_rate import JUDGED_WIN_RATES
from alignflow.jobs.run_folder import RunFolder
from alignflow.jobs.spec import JobResult
from alignflow.training.chat import ChatTokenizer
from alignflow.training.megatron.architecture import check_positions
from alignflow.training.megatron.inference import LanguageModel

_HELD_OUT = "held_out"


@dataclass(frozen=True)
class Judged:
    """Comparisons, and what the judge said of them."""

    asked: Asked
    margins_N2: Floats
    """By how much it prefers the first answer, in nats, in each order."""

    @property
    def outcomes(self) -> Floats:
        """1 for a win of the first answer, 1/2 for a tie, 0 for a loss."""
        return scorers.outcomes_in_both_orders(self.margins_N2)

    @property
    def prompts(self) -> Items:
        """The prompts."""
        return Items.of(comparison.prompt for comparison in self.asked.comparisons)

    def items(self, first: str, other: str, **known: Any) -> list[dict[str, Any]]:
        """Return a JSON object a comparison, the answers under these names."""
        return [
            {
                **known,
                "prompt": comparison.prompt,
                first: comparison.first,
                other: comparison.other,
                "verdicts": [_preferred(margin, first, other) for margin in margins],
                "margins": margins,
                "outcome": outcome,
            }
            for comparison, margins, outcome in zip(
                self.asked.comparisons,
                self.margins_N2.tolist(),
                self.outcomes.tolist(),
                strict=True,
            )
        ]


def _preferred(margin: float, first: str, other: str) -> str:
    if margin > 0:
        return first
    return other if margin < 0 else "neither"


def judge_answers(job: AnswerJudgeJob, folder: RunFolder) -> JobResult:
    """Have answers compared, and write scores and items to the job's output.

    Raises:
        ConfigError: Questions may be longer than the judge's positions.
        DataError: The held-out pairs or the judge's folder can't be used.
    """
    check_positions(job.model, job.judge.max_length, "evaluation.answer_judge.max_length")
    compared = {_HELD_OUT: held_out_comparisons(job.preferences, job.judge.max_pairs)}
    compared |= {
        name: compared_answers(job.evaluations["aligned"], of_other)
        for name, of_other in job.evaluations.items()
        if name != "aligned"
    }
    chat = ChatTokenizer.load(job.model)
    asked = {name: Asked.of(of, job.judge, chat) for name, of in compared.items()}
    progress = Progress(folder, sum(len(each.trees) for each in asked.values()))
    folder.append_metrics({"phase": "load", "model": str(job.model), "time": time.time()})
    model = LanguageModel.load(job.model, precision=job.precision)
    work = SharedWork(folder.path / "verdicts", progress)
    score = partial(model.passes, max_tokens=job.microbatch_tokens)
    judged = {
        name: Judged(each, each.margins(work.collect(name, each.trees, score)))
        for name, each in asked.items()
    }
    results = Results(folder.output)
    _add_results(results, judged.pop(_HELD_OUT), judged, min_accuracy=job.judge.min_accuracy)
    results.write({}, {name: each.num_left_out for name, each in asked.items()})
    return JobResult(metrics=results.scores, details={"num_items": results.num_items})


def _add_results(
    results: Results, held_out: Judged, judged: Mapping[str, Judged], *, min_accuracy: float
) -> None:
    """Add how good the judge is, and the win rates, which don't count if it isn't good enough."""
    quality = quality_result(held_out)
    results.add("answer_judge", quality, len(quality.items))
    wins = win_result(judged)
    results.add("judged_win_rate", wins, len(wins.items))
    accuracy = quality.scores["accuracy"]
    if not accuracy >= min_accuracy:  # nor if there was no pair to measure it on
        reason = (
            f"The answer judge is not good enough to gate: its accuracy on {len(quality.items)} "
            f"held-out pairs is {accuracy:.3f} and at least {min_accuracy:g} is asked for."
        )
        for name in JUDGED_WIN_RATES:
            results.distrust(name, reason)


def quality_result(held_out: Judged) -> SuiteResult:
    """Return `accuracy` and `consistency` on pairs whose first answer people chose.

    A pair that is decided rightly in both orders adds 1 to the accuracy, in one order 1/2: a judge
    that goes by the place alone has 0.5. It adds 1 to the consistency if both orders agree.
    """
    pairs = Items.of(
        ([each.prompt, each.first, each.other] for each in held_out.asked.comparisons),
        sources=(each.prompt for each in held_out.asked.comparisons),
    )
    outcomes_N = held_out.outcomes
    is_consistent_N = np.where(np.isnan(outcomes_N), np.nan, outcomes_N != 0.5)
    return SuiteResult(
        {
            "accuracy": Measure.mean(pairs, outcomes_N, is_share=True),
            "consistency": Measure.mean(pairs, is_consistent_N, is_share=True),
        },
        held_out.items("chosen", "rejected"),
    )


def win_result(judged: Mapping[str, Judged]) -> SuiteResult:
    """Return how often the aligned model's answers win, a tie counting one half, by opponent."""
    found = {name: of for name, of in judged.items() if of.asked.comparisons}
    return SuiteResult(
        {name: Measure.mean(of.prompts, of.outcomes, is_share=True) for name, of in found.items()},
        [item for name, of in found.items() for item in of.items("aligned", "other", against=name)],
    )
