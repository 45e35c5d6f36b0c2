"""The gate: measures and rules in, a verdict with a reason for every rule out."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Self

from alignflow.config import Config
from alignflow.evaluation.bootstrap import Estimate, fewest_sources
from alignflow.evaluation.config import GateConfig, GateRule
from alignflow.evaluation.measures import Comparison, Measure, Scored, compare

Measures = Mapping[str, Measure]
"""Scores of one model by name, such as `truthfulness/mc2`."""

# Bounds are written in decimal and compared in binary: 0.8 - 0.1 must not ask for more than 0.7.
_TOLERANCE = 1e-9
_NO_CHAMPION = "there is no champion to compare with yet"


class RuleResult(Config):
    """What became of one rule."""

    name: str
    passed: bool
    reason: str
    """One sentence with the numbers."""
    score: str
    """Name of the score the rule looks at."""
    value: float | None = None
    """The aligned model's score; None where it is missing or not a number."""
    bound: float | None = None
    """The bound that decided, or the first one where all were kept."""
    compared_value: float | None = None
    """The other model's score on the same items, for a rule that compares."""


class Verdict(Config):
    """Whether a model may be registered, and why."""

    passed: bool
    rules: list[RuleResult]

    def to_json(self) -> str:
        """Return the verdict as JSON text."""
        return self.model_dump_json(indent=2)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote."""
        return cls.model_validate_json(text)


class _Condition(NamedTuple):
    kept: bool
    text: str
    bound: float | None


def judge(
    config: GateConfig,
    models: Mapping[str, Measures | None],
    *,
    win_rates: Mapping[str, Scored] | None = None,
    limited: Sequence[str] = (),
    weak_judges: Mapping[str, str] | None = None,
) -> Verdict:
    """Return the verdict on the aligned model; it passes when every rule does.

    Without a rule nothing was asked of the model, so nothing says that it may pass: it doesn't.
    Nor does a model that was judged on a part of the items.

    Args:
        config: The rules.
        models: Measures by model: `aligned`, and those that rules compare with (`base`, `sft`,
            `champion`). A champion of None means that there is none yet; one without measures
            fails the rules that compare with it.
        win_rates: The aligned model's win rates against the others, as `win_rate/sft`.
        limited: Settings of the evaluation that kept items from being judged.
        weak_judges: Suites that were judged by who isn't good enough, and why in one sentence;
            rules about them fail.
    """
    if not config.rules:
        reason = "The recipe has no rules, so nothing can be judged: give gate.rules."
        return Verdict(
            passed=False,
            rules=[RuleResult(name="rules", passed=False, reason=reason, score="none")],
        )
    distrusted = weak_judges or {}
    results = [
        RuleResult(name=name, passed=False, reason=distrusted[suite], score=rule.score)
        if (suite := rule.score.partition("/")[0]) in distrusted
        else _judge_rule(name, rule, models, win_rates or {})
        for name, rule in config.rules.items()
    ]
    if limited:
        results.append(_refusal_of_a_part(limited))
    return Verdict(passed=all(result.passed for result in results), rules=results)


def _refusal_of_a_part(limited: Sequence[str]) -> RuleResult:
    settings = ", ".join(f"evaluation.{setting}" for setting in limited)
    reason = (
        f"The model was judged on a part of the items ({settings}), which is no ground to promote "
        "it: take the limit out of the recipe."
    )
    return RuleResult(name="judged_on_all_items", passed=False, reason=reason, score="none")


def _judge_rule(
    name: str,
    rule: GateRule,
    models: Mapping[str, Measures | None],
    win_rates: Mapping[str, Scored],
) -> RuleResult:
    scored, problem = _find(rule, models, win_rates)
    if scored is None:
        has_no_rival = rule.is_win_rate and rule.asks_for_champion and not _has_champion(models)
        reason = f"{rule.score}: {_NO_CHAMPION}." if has_no_rival else problem
        return RuleResult(name=name, passed=has_no_rival, reason=reason, score=rule.score)
    conditions = _absolute_conditions(rule, scored.estimate())
    compared_value = None
    if isinstance(scored, Measure) and rule.compared_with is not None:
        compared_value, condition = _comparison(rule, scored, models)
        conditions.append(condition)
    broken = [condition for condition in conditions if not condition.kept]
    over = f" over {len(scored.items.ids)} items" if rule.confidence is not None else ""
    return RuleResult(
        name=name,
        passed=not broken,
        reason=f"{rule.score} is {scored.value:.4g}{over}: "
        + "; ".join(c.text for c in broken or conditions)
        + ".",
        score=rule.score,
        value=scored.value,
        bound=(broken or conditions)[0].bound,
        compared_value=compared_value,
    )


def _find(
    rule: GateRule, models: Mapping[str, Measures | None], win_rates: Mapping[str, Scored]
) -> tuple[Scored | None, str]:
    """Return what a rule is about, or None and the sentence that says what is wrong with it."""
    if not rule.is_win_rate:
        return _finite_measure(models, "aligned", rule.score)
    rate = win_rates.get(rule.score)
    if rate is None:
        judge = "the answer judge compared" if "judged" in rule.score else "one reward model scored"
        return None, (
            f"{rule.score} is missing: the two models have no answers to the same prompts that "
            f"{judge}."
        )
    if not math.isfinite(rate.value):
        return None, f"{rule.score} is {rate.value}, not a finite number."
    return rate, ""


def _has_champion(models: Mapping[str, Measures | None]) -> bool:
    return models.get("champion") is not None


def _absolute_conditions(rule: GateRule, score: Estimate) -> list[_Condition]:
    conditions = []
    for bound, is_lower in ((rule.at_least, True), (rule.at_most, False)):
        if bound is None:
            continue
        asked = f"at {'least' if is_lower else 'most'} {bound:.4g}"
        if rule.confidence is None:
            kept = _keeps(score.value, bound, is_lower)
            conditions.append(_Condition(kept, _sentence(kept, asked), bound))
        else:
            conditions.append(_confident(rule.confidence, score, bound, is_lower, asked))
    return conditions


def _keeps(value: float, bound: float, is_lower: bool) -> bool:
    return value >= bound - _TOLERANCE if is_lower else value <= bound + _TOLERANCE


def _sentence(kept: bool, asked: str) -> str:
    return f"{asked} was asked for and {'reached' if kept else 'missed'}"


def _confident(
    confidence: float,
    score: Estimate,
    bound: float,
    is_lower: bool,
    asked: str,
    what: str = "the score",
) -> _Condition:
    """Return whether a score keeps a bound with a (one-sided) confidence.

    Args:
        confidence: Such as 0.95.
        score: Of the aligned model, or its difference from another's.
        bound: The least or the most that it may be.
        is_lower: Whether the bound is the least.
        asked: The bound in words.
        what: The score in words.
    """
    asked = f"{asked} with {100 * confidence:g} % confidence"
    fewest = fewest_sources(confidence)
    if score.num_sources < fewest:
        text = (
            f"{asked} was asked for, which takes items of {fewest} sources or more, and there are "
            f"{score.num_sources}"
        )
        return _Condition(kept=False, text=text, bound=bound)
    (reached,) = score.bounds([1 - confidence if is_lower else confidence])
    kept = _keeps(reached, bound, is_lower)
    found = f"(with it {what} is at {'least' if is_lower else 'most'} {reached:.4g})"
    return _Condition(kept, f"{_sentence(kept, asked)} {found}", bound)


def _comparison(
    rule: GateRule, measure: Measure, models: Mapping[str, Measures | None]
) -> tuple[float | None, _Condition]:
    """Return the other model's score and whether the aligned model keeps up with it."""
    other = str(rule.compared_with)
    if other == "champion" and not _has_champion(models):
        return None, _Condition(kept=True, text=_NO_CHAMPION, bound=None)
    other_measure, problem = _finite_measure(models, other, rule.score)
    if other_measure is None:
        return None, _Condition(kept=False, text=problem.rstrip("."), bound=None)
    compared = compare(measure, other_measure)
    if not compared.num_items:
        text = f"the {other} model was judged on none of the same items"
        return None, _Condition(kept=False, text=text, bound=None)
    condition = _keeps_up(rule, compared)
    return compared.other_value, condition._replace(text=condition.text + _differing(compared))


def _keeps_up(rule: GateRule, compared: Comparison) -> _Condition:
    is_lower, value = rule.higher_is_better, compared.other_value
    bound = value - rule.max_drop if is_lower else value + rule.max_drop
    if rule.confidence is None:
        kept = _keeps(compared.value, bound, is_lower)
        basis = f"({rule.compared_with} {value:.4g}, allowed drop {rule.max_drop:.4g})"
        asked = f"at {'least' if is_lower else 'most'} {bound:.4g} {basis}"
        return _Condition(kept, _sentence(kept, asked), bound)
    difference = compared.difference
    asked = (
        f"at most {rule.max_drop:.4g} {'less' if is_lower else 'more'} than the "
        f"{rule.compared_with} model's {value:.4g}"
    )
    what = f"the difference of {difference.value:+.4g}"
    condition = _confident(rule.confidence, difference, bound - value, is_lower, asked, what)
    return condition._replace(bound=bound)


def _differing(compared: Comparison) -> str:
    """Say where the two models were not judged on the same items."""
    if not compared.num_only_first and not compared.num_only_other:
        return ""
    return (
        f" (over the {compared.num_items} items that both were judged on; the aligned model on "
        f"{compared.num_only_first} others, that one on {compared.num_only_other})"
    )


def _finite_measure(
    models: Mapping[str, Measures | None], model: str, score: str
) -> tuple[Measure | None, str]:
    """Return the measure, or None and the sentence that says what is wrong with it."""
    measure = (models.get(model) or {}).get(score)
    if measure is None:
        return None, f"{score} of the {model} model is missing, so it can't be judged."
    if not math.isfinite(measure.value):
        return None, f"{score} of the {model} model is {measure.value}, not a finite number."
    return measure, ""
