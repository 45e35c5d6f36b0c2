"""What the scores of several models say beside one another, as the report shows it."""

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from alignflow.artifacts import Artifact
from alignflow.evaluation.bootstrap import Estimate
from alignflow.evaluation.gate import Measures
from alignflow.evaluation.measures import Measure, compare
from alignflow.evaluation.results import CONFIDENCE
from alignflow.evaluation.win_rate import Duel, duels, judged_duels
from alignflow.reporting.model import (
    ROLES,
    AnswerJudgeSummary,
    Difference,
    GroupScores,
    Interval,
    ModelComparison,
    ModelRole,
    ScoreRow,
    WinRate,
)
from alignflow.reporting.scores import score_row
from alignflow.tasks.evaluate import JudgedAnswers, comparable_measures
from alignflow.tasks.evaluated import Evaluated
from alignflow.tasks.items import distributions_of


def compare_models(
    first: tuple[str, Artifact, Path], second: tuple[str, Artifact, Path]
) -> ModelComparison:
    """Compare two evaluations, each given by what a person calls it, its artifact and its folder.

    Raises:
        ConfigError: An older version of alignflow made one, which kept no values of items.
    """
    (name, evaluation, folder), (other_name, other, other_folder) = first, second
    measures = comparable_measures(folder, evaluation, beside=other)
    models: dict[ModelRole, Evaluated] = {
        "base": Evaluated.read(folder, measures),
        "aligned": Evaluated.read(other_folder),
    }
    return ModelComparison(
        first=name,
        second=other_name,
        made_at=datetime.now(UTC),
        scores=score_rows(models),
        win_rates=win_rate_rows(models, tie_margin=0.0),
        distributions=distributions_of(models),
        **not_as_they_came(models["aligned"]),
    )


def not_as_they_came(model: Evaluated) -> dict[str, dict[str, int]]:
    """Return how many sequences were cut and how many items left out, by suite, as fields."""
    # Evaluations that are older than the second didn't count them.
    counts = {name: model.scores.get(name, {}) for name in ("num_truncated", "num_left_out")}
    return {
        name: {suite: count for suite, count in by_suite.items() if count}
        for name, by_suite in counts.items()
    }


def score_rows(models: Mapping[ModelRole, Evaluated]) -> list[ScoreRow]:
    """Return a row for each score that any of the models has."""
    scores = {role: model.scores for role, model in models.items()}
    measures = {role: model.measures for role, model in models.items()}
    names = dict.fromkeys(name for item in scores.values() for name in item["scores"])
    return [
        _score_row(name, scores, differences_of(name, measures["aligned"], measures))
        for name in names
    ]


def differences_of(
    name: str, aligned: Measures, models: Mapping[ModelRole, Measures]
) -> dict[ModelRole, Difference]:
    """Return how far the aligned model's score lies above that of each other model."""
    differences: dict[ModelRole, Difference] = {}
    for role, measures in models.items():
        if role == "aligned" or name not in measures or name not in aligned:
            continue
        compared = compare(aligned[name], measures[name])
        value = compared.difference.value
        if math.isfinite(value):
            differences[role] = Difference(
                value=value,
                interval=_interval(compared.difference),
                num_items=compared.num_items,
            )
    return differences


def _score_row(
    name: str,
    scores: Mapping[ModelRole, Mapping[str, Any]],
    differences: Mapping[ModelRole, Difference],
) -> ScoreRow:
    present = {role: item for role, item in scores.items() if name in item["scores"]}
    return score_row(
        name,
        {role: item["scores"][name] for role, item in present.items()},
        intervals={
            role: item["intervals"][name]
            for role, item in present.items()
            if name in item["intervals"]
        },
        differences=differences,
        groups=_groups(name, present),
        num_items=next(
            (item["num_items"].get(name.partition("/")[0]) for item in present.values()), None
        ),
    )


def _groups(name: str, scores: Mapping[ModelRole, Mapping[str, Any]]) -> dict[str, GroupScores]:
    by_role = {role: item["groups"].get(name, {}) for role, item in scores.items()}
    groups = dict.fromkeys(group for of_role in by_role.values() for group in of_role)
    return {
        group: GroupScores(
            values={
                role: of_role[group]["value"]
                for role, of_role in by_role.items()
                if of_role.get(group, {}).get("value") is not None
            },
            intervals={
                role: of_role[group]["interval"]
                for role, of_role in by_role.items()
                if of_role.get(group, {}).get("interval") is not None
            },
            num_items=next(
                of_role[group]["num_items"] for of_role in by_role.values() if group in of_role
            ),
        )
        for group in groups
    }


def _interval(estimate: Estimate) -> Interval | None:
    """Return the confidence interval, None where it isn't known."""
    low, high = estimate.interval(CONFIDENCE)
    return (low, high) if math.isfinite(low) and math.isfinite(high) else None


def win_rate_rows(models: Mapping[ModelRole, Evaluated], *, tie_margin: float) -> list[WinRate]:
    """Return how often the aligned model's answers win against those of each other model."""
    return _win_rate_rows(duels(_measures(models), tie_margin=tie_margin))


def _measures(models: Mapping[ModelRole, Evaluated]) -> dict[str, Measures]:
    return {role: model.measures for role, model in models.items()}


def _win_rate_rows(found: Mapping[str, Duel]) -> list[WinRate]:
    return [_win_rate_row(role, found[role]) for role in ROLES if role in found]


def _win_rate_row(against: ModelRole, duel: Duel) -> WinRate:
    rate, controlled = duel.win_rate(), duel.length_controlled()
    tokens, other_tokens = duel.lengths_N2.mean(axis=0).tolist()
    return WinRate(
        against=against,
        num_prompts=len(duel.items.ids),
        rate=rate.value,
        interval=_interval(rate.estimate()),
        ties=duel.ties,
        length_controlled=controlled.value if math.isfinite(controlled.value) else None,
        length_controlled_interval=_interval(controlled.estimate()),
        tokens=tokens,
        other_tokens=other_tokens,
    )


def answer_judge_summary(
    name: str, models: Mapping[ModelRole, Evaluated], answers: JudgedAnswers
) -> AnswerJudgeSummary:
    """Return how good a judge of answers is, and how often the aligned model's win by it.

    Args:
        name: Of the judge.
        models: What it compared.
        answers: What it said.
    """
    accuracy, consistency = (
        answers.measures[f"answer_judge/{score}"] for score in ("accuracy", "consistency")
    )
    return AnswerJudgeSummary(
        name=name,
        num_pairs=len(accuracy.items.ids),
        accuracy=_value(accuracy),
        accuracy_interval=_interval(accuracy.estimate()),
        consistency=_value(consistency),
        consistency_interval=_interval(consistency.estimate()),
        num_left_out=answers.num_left_out,
        objection=answers.weak_judges.get("judged_win_rate", ""),
        win_rates=_win_rate_rows(judged_duels(_measures(models), answers.measures)),
    )


def _value(measure: Measure) -> float | None:
    return measure.value if math.isfinite(measure.value) else None
