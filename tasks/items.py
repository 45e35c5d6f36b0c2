"""What single items and answers say, as the report shows it: spreads, the worst, samples."""

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from alignflow.evaluation.measures import Measure
from alignflow.reporting.model import (
    Answer,
    Distribution,
    Message,
    ModelRole,
    Sample,
    WorstItem,
)
from alignflow.reporting.scores import score_words
from alignflow.tasks.evaluated import Evaluated

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
