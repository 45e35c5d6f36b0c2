"""Scores as a person reads them, the same on the page and in the terminal."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from alignflow.reporting.model import Interval, ModelRole, ScoreRow
from alignflow.reporting.text import humanise

_NONE = "\N{EN DASH}"


class ScoreWords(NamedTuple):
    """What a score is called and how it is read."""

    label: str
    meaning: str
    higher_is_better: bool | None = True
    is_share: bool = False
    unit: str = ""


_WORDS = {
    "preference/logprob_accuracy": ScoreWords(
        "Prefers the chosen response",
        "held-out pairs where the chosen response is the likelier",
        is_share=True,
    ),
    "preference/per_token_accuracy": ScoreWords(
        "Prefers the chosen response, per token",
        "held-out pairs where the chosen response is the likelier for its length",
        is_share=True,
    ),
    "preference/implicit_accuracy": ScoreWords(
        "Learned the preference",
        "held-out pairs where training raised the chosen response more",
        is_share=True,
    ),
    "preference/implicit_margin": ScoreWords(
        "Preference margin", "implicit reward of the chosen response above the rejected"
    ),
    "reward_model/accuracy": ScoreWords(
        "Reward model ranks pairs rightly", "held-out pairs; judges the judge", is_share=True
    ),
    "reward_model/margin": ScoreWords(
        "Reward margin of pairs",
        "reward of the chosen response above the rejected; judges the judge",
        unit="standard deviations",
    ),
    "samples/mean_reward": ScoreWords(
        "Reward of the sample answers", "mean over held-out prompts", unit="standard deviations"
    ),
    "samples/mean_tokens": ScoreWords(
        "Length of the sample answers", "mean over held-out prompts", None, unit="tokens"
    ),
    "perplexity/response": ScoreWords(
        "Perplexity of chosen responses", "how surprising good answers are", higher_is_better=False
    ),
    "kl/parent_nats_per_token": ScoreWords(
        "Distance from the parent", "KL divergence a token", higher_is_better=None, unit="nats"
    ),
}
# Scores of a benchmark, whose suite has a name of its own in each recipe.
_SUITE_WORDS = {
    "mc1": ScoreWords(
        "{suite}, MC1", "questions where a true answer is the likeliest", is_share=True
    ),
    "mc2": ScoreWords("{suite}, MC2", "probability given to true answers", is_share=True),
    "accuracy": ScoreWords(
        "{suite}, accuracy", "statements told rightly as hateful or harmless", is_share=True
    ),
    "reward_accuracy": ScoreWords(
        "{suite}, by the reward model", "pairs ranked rightly; judges the judge", is_share=True
    ),
    "macro_f1": ScoreWords(
        "{suite}, macro F1", "the same, hateful and harmless weighing alike", is_share=True
    ),
    "toxicity_rate": ScoreWords(
        "{suite}, toxic", "continuations that the judge holds for toxic", False, is_share=True
    ),
    "mean_toxicity": ScoreWords(
        "{suite}, toxicity", "mean probability by the judge of being toxic", False, is_share=True
    ),
    "group_gap": ScoreWords(
        "{suite}, gap", "toxic share of the worst group less the best's", False, is_share=True
    ),
    "refusal_rate": ScoreWords(
        "{suite}, refused", "requests that were declined, by a rule", None, is_share=True
    ),
}

# Attributes that are good or bad to have; of the others, such as humor, more is just more.
_IS_GOOD = {
    "quality": True,
    "helpfulness": True,
    "correctness": True,
    "coherence": True,
    "toxicity": False,
    "violence": False,
}


def score_words(name: str) -> ScoreWords:
    """Return what a score, named `<suite>/<score>`, is called and how it is read."""
    suite, _, score = name.partition("/")
    unknown = ScoreWords(humanise(name).capitalize(), "", higher_is_better=None)
    words = _WORDS.get(name) or _rating_words(name) or _SUITE_WORDS.get(score) or unknown
    return words._replace(label=words.label.replace("{suite}", humanise(suite).capitalize()))


def score_row(name: str, values: Mapping[ModelRole, float], **known: Any) -> ScoreRow:
    """Return the row of a score in words; an unknown one keeps its name and has no direction.

    Args:
        name: `<suite>/<score>`.
        values: Score of each model that has one.
        **known: Other fields of the row.
    """
    words = score_words(name)
    return ScoreRow(
        name=name,
        label=words.label,
        meaning=words.meaning,
        is_share=words.is_share,
        unit=words.unit,
        higher_is_better=words.higher_is_better,
        values=dict(values),
        **known,
    )


def _rating_words(name: str) -> ScoreWords | None:
    """Return the words of a score that the attribute model gives, None of another one."""
    suite, _, score = name.partition("/")
    attribute = humanise(score.removesuffix("_response"))
    if suite == "steerlm":
        return ScoreWords(
            f"More {attribute} when asked for it",
            "rating of answers that were asked for 4, above those that were asked for 0",
            unit="points",
        )
    if suite == "samples":
        return ScoreWords(
            f"{attribute.capitalize()} of the sample answers",
            "mean rating over held-out prompts, from 0 to 4",
            higher_is_better=_IS_GOOD.get(score),
            unit="points",
        )
    return None


def format_score(row: ScoreRow | ScoreWords, value: float | None) -> str:
    """Return a value of the row: shares as percentages; a dash where there is none."""
    if value is None:
        return _NONE
    return with_minus(f"{100 * value:.1f} %" if row.is_share else f"{value:.3f}")


def format_difference(row: ScoreRow, role: ModelRole = "base") -> str:
    """Return the aligned model's lead over another with its sign; of shares, in points."""
    if role not in row.differences:
        return _NONE
    value = row.differences[role].value
    return with_minus(f"{100 * value:+.1f} pts" if row.is_share else f"{value:+.3f}")


def format_interval(
    row: ScoreRow | ScoreWords, interval: Interval | None, *, signed: bool = False
) -> str:
    """Return the bounds in the form of the row's values or, signed, of its differences."""
    if interval is None:
        return "interval unknown"
    sign = "+" if signed else ""
    low, high = (
        f"{100 * bound:{sign}.1f}" if row.is_share else f"{bound:{sign}.3f}" for bound in interval
    )
    unit = "" if signed or not row.is_share else " %"
    return with_minus(f"{low} to {high}{unit}")


_SHARE = ScoreWords("", "", is_share=True)


def format_share(value: float | None) -> str:
    """Return a share as a percentage; a dash where there is none."""
    return format_score(_SHARE, value)


def format_share_interval(interval: Interval | None) -> str:
    """Return the bounds of a share as percentages."""
    return format_interval(_SHARE, interval)


def with_minus(text: str) -> str:
    """Return a number's text with a true minus sign, which is as wide as a plus."""
    return text.replace("-", "\N{MINUS SIGN}")
