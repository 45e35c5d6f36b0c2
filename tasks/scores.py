"""What the evaluations of a run's models say beside one another, as the report shows it."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import numpy as np

from alignflow.artifacts import Artifact
from alignflow.errors import AlignflowError
from alignflow.evaluation.bootstrap import Estimate
from alignflow.evaluation.gate import Measures
from alignflow.evaluation.measures import Measure, compare
from alignflow.evaluation.results import CONFIDENCE
from alignflow.evaluation.win_rate import Duel, duels
from alignflow.reporting.model import (
    ROLES,
    Answer,
    Difference,
    Distribution,
    GroupScores,
    Interval,
    Message,
    ModelComparison,
    ModelRole,
    Sample,
    ScoreRow,
    WinRate,
    WorstItem,
)
from alignflow.reporting.scores import score_row, score_words
from alignflow.tasks.evaluate import (
    champion_evaluation,
    comparable_measures,
    measures_of,
    read_scores,
)
from alignflow.tasks.logs import run_logger
from alignflow.tasks.pipeline import Pipeline
from alignflow.tasks.tracking import RegisteredVersion

_SHOWN_SAMPLES = 12
_NUM_BINS = 20
_SHOWN_WORST = 5
_RANKED_BY = ("mc2", "accuracy")
"""The score by which the items of a benchmark are ranked, the first that it has."""
_SPREADS = {
    "reward_model/margin": ("Reward, chosen above rejected", "standard deviations"),
    "preference/implicit_margin": ("Implicit reward, chosen above rejected", ""),
    "samples/mean_tokens": ("Length of the answers", "tokens"),
}
"""Title and unit of the scores whose spread is shown."""


@dataclass(frozen=True)
class Evaluated:
    """What the evaluation of one model says."""

    scores: Mapping[str, Any]
    """The content of its `scores.json`."""
    measures: Measures
    samples: list[dict[str, Any]]
    """Its answers to prompts, as JSON objects."""
    items: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """The items of each suite, as JSON objects."""

    @classmethod
    def read(cls, folder: Path, measures: Measures | None = None) -> Self:
        """Read an evaluation artifact, of its scores only those of the measures, where given."""
        scores = read_scores(folder)
        if measures is not None:
            kept = {name: value for name, value in scores["scores"].items() if name in measures}
            scores["scores"] = kept
        return cls(
            scores,
            measures if measures is not None else measures_of(folder),
            _read_lines(folder / "samples.jsonl"),
            {path.stem: _read_lines(path) for path in sorted(folder.glob("items/*.jsonl"))},
        )


def _read_lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def evaluated_models(
    pipeline: Pipeline,
    evaluations: Mapping[ModelRole, Artifact],
    champion: RegisteredVersion | None,
) -> dict[ModelRole, Evaluated]:
    """Read the evaluations of a run, and the champion's where it can be had, in their order."""
    models = {role: Evaluated.read(pipeline.local(of)) for role, of in evaluations.items()}
    if champion is not None:
        try:
            evaluation, folder = champion_evaluation(pipeline, champion)
            measures = comparable_measures(folder, evaluation, beside=evaluations["aligned"])
            models["champion"] = Evaluated.read(folder, measures)
        except AlignflowError as error:
            run_logger().warning("The champion can't be shown: %s", error)
    return {role: models[role] for role in ROLES if role in models}


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
        num_truncated={
            suite: count
            for suite, count in models["aligned"].scores["num_truncated"].items()
            if count
        },
    )


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
    measures: dict[str, Measures] = {role: model.measures for role, model in models.items()}
    found = duels(measures, tie_margin=tie_margin)
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


def distributions_of(models: Mapping[ModelRole, Evaluated]) -> list[Distribution]:
    """Return how the values of items spread, of the scores where a mean hides much."""
    found = []
    for name, (title, unit) in _SPREADS.items():
        is_of_judge = name.startswith("reward_model/")  # and the same for every model
        values = {
            role: model.measures[name].columns_NC[:, 0]
            for role, model in models.items()
            if name in model.measures and (role == "aligned" or not is_of_judge)
        }
        finite = {role: of[np.isfinite(of)] for role, of in values.items()}
        held = {role: of for role, of in finite.items() if len(of) > 1}
        if held:
            edges = np.histogram_bin_edges(np.concatenate(list(held.values())), _NUM_BINS)
            found.append(
                Distribution(
                    title=title,
                    unit=unit,
                    label="reward model" if is_of_judge else "",
                    edges=edges.tolist(),
                    counts={r: np.histogram(of, edges)[0].tolist() for r, of in held.items()},
                    means={role: float(of.mean()) for role, of in held.items()},
                )
            )
    return found


def worst_items(models: Mapping[ModelRole, Evaluated]) -> list[WorstItem]:
    """Return the items of each benchmark that the aligned model does worst on.

    Among equals those come first that the base model did better on.
    """
    aligned = models["aligned"]
    base = models["base"].measures if "base" in models else {}
    worst = []
    for suite, items in aligned.items.items():
        name = next((n for n in _RANKED_BY if f"{suite}/{n}" in aligned.measures), None)
        if name is not None and items and _text_of(items[0]):
            measure, before = aligned.measures[f"{suite}/{name}"], base.get(f"{suite}/{name}")
            label = score_words(f"{suite}/{name}").label
            worst += _worst_of(label, items, _by_id(measure), _by_id(before) if before else {})
    return worst


def _by_id(measure: Measure) -> dict[str, float]:
    return dict(zip(measure.items.ids, measure.columns_NC[:, 0].tolist(), strict=True))


def _worst_of(
    label: str,
    items: list[dict[str, Any]],
    values: Mapping[str, float],
    before: Mapping[str, float],
) -> list[WorstItem]:
    judged = [
        WorstItem(
            suite=label,
            text=_text_of(item),
            said=_said_of(item),
            value=value,
            base_value=before.get(name),
        )
        for item, (name, value) in zip(items, values.items(), strict=True)
        if math.isfinite(value)
    ]
    return sorted(judged, key=lambda item: (item.value, -(item.base_value or 0.0)))[:_SHOWN_WORST]


def _text_of(item: Mapping[str, Any]) -> str:
    return str(item.get("question") or item.get("text") or "")


def _said_of(item: Mapping[str, Any]) -> str:
    """Return what the model holds for likeliest of an item, in words."""
    if "answers" in item:
        known = [answer for answer in item["answers"] if answer["logprob"] is not None]
        likeliest = max(known, key=lambda answer: answer["logprob"])
        return f"likeliest answer: {likeliest['text']}"
    return f"called {'hateful' if item.get('prediction') else 'harmless'}"


def samples_of(models: Mapping[ModelRole, Evaluated]) -> list[Sample]:
    """Return the first prompts with the answers of every model that was asked the same."""
    answers = {
        role: {json.dumps(line["prompt"]): line for line in model.samples}
        for role, model in models.items()
    }
    return [
        Sample(
            prompt=[Message.model_validate(message) for message in line["prompt"]],
            answers={
                role: Answer(
                    text=of[prompt]["answer"],
                    reward=(
                        of[prompt].get("reward")
                        if "samples/mean_reward" in models[role].measures
                        else None
                    ),
                )
                for role, of in answers.items()
                if (prompt := json.dumps(line["prompt"])) in of
            },
        )
        for line in models["aligned"].samples[:_SHOWN_SAMPLES]
    ]
