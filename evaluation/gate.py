"""The gate: scores and rules in, a verdict with a reason for every rule out."""

import math
from collections.abc import Mapping
from typing import NamedTuple, Self

from alignflow.config import Config
from alignflow.evaluation.config import GateConfig, GateRule

Scores = Mapping[str, float | None]
"""Scores of one model by name, such as `truthfulness/mc2`."""

# Bounds are written in decimal and compared in binary: 0.8 - 0.1 must not ask for more than 0.7.
_TOLERANCE = 1e-9


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
    """The other model's score, for a rule that compares."""


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
    scores: Mapping[str, Scores | None],
    *,
    weak_judges: Mapping[str, str] | None = None,
) -> Verdict:
    """Return the verdict on the aligned model; it passes when every rule does.

    Without a rule nothing was asked of the model, so nothing says that it may pass: it doesn't.

    Args:
        config: The rules.
        scores: Scores by model: `aligned`, and those that rules compare with (`base`, `sft`,
            `champion`). A champion of None means that there is none yet; one without scores
            fails the rules that compare with it.
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
        else _judge_rule(name, rule, scores)
        for name, rule in config.rules.items()
    ]
    return Verdict(passed=all(result.passed for result in results), rules=results)


def _judge_rule(name: str, rule: GateRule, scores: Mapping[str, Scores | None]) -> RuleResult:
    value, problem = _finite_score(scores, "aligned", rule.score)
    if value is None:
        return RuleResult(name=name, passed=False, reason=problem, score=rule.score)
    conditions = _absolute_conditions(rule, value)
    compared_value = None
    if rule.compared_with is not None:
        compared_value, condition = _comparison(rule, value, scores)
        conditions.append(condition)
    broken = [condition for condition in conditions if not condition.kept]
    return RuleResult(
        name=name,
        passed=not broken,
        reason=f"{rule.score} is {value:.4g}: "
        + "; ".join(c.text for c in broken or conditions)
        + ".",
        score=rule.score,
        value=value,
        bound=(broken or conditions)[0].bound,
        compared_value=compared_value,
    )


def _absolute_conditions(rule: GateRule, value: float) -> list[_Condition]:
    conditions = []
    if rule.at_least is not None:
        conditions.append(_lower_bound(value, rule.at_least, f"at least {rule.at_least:.4g}"))
    if rule.at_most is not None:
        conditions.append(_upper_bound(value, rule.at_most, f"at most {rule.at_most:.4g}"))
    return conditions


def _lower_bound(value: float, bound: float, asked: str) -> _Condition:
    kept = value >= bound - _TOLERANCE
    return _Condition(kept=kept, bound=bound, text=_sentence(kept, asked))


def _upper_bound(value: float, bound: float, asked: str) -> _Condition:
    kept = value <= bound + _TOLERANCE
    return _Condition(kept=kept, bound=bound, text=_sentence(kept, asked))


def _sentence(kept: bool, asked: str) -> str:
    return f"{asked} was asked for and reached" if kept else f"{asked} was asked for and missed"


def _comparison(
    rule: GateRule, value: float, scores: Mapping[str, Scores | None]
) -> tuple[float | None, _Condition]:
    """Return the other model's score and whether the aligned model keeps up with it."""
    other = str(rule.compared_with)
    if other == "champion" and scores.get(other) is None:
        text = "there is no champion to compare with yet"
        return None, _Condition(kept=True, text=text, bound=None)
    other_value, problem = _finite_score(scores, other, rule.score)
    if other_value is None:
        return None, _Condition(kept=False, text=problem.rstrip("."), bound=None)
    basis = f"({other} {other_value:.4g}, allowed drop {rule.max_drop:.4g})"
    if rule.higher_is_better:
        bound = other_value - rule.max_drop
        return other_value, _lower_bound(value, bound, f"at least {bound:.4g} {basis}")
    bound = other_value + rule.max_drop
    return other_value, _upper_bound(value, bound, f"at most {bound:.4g} {basis}")


def _finite_score(
    scores: Mapping[str, Scores | None], model: str, score: str
) -> tuple[float | None, str]:
    """Return the score, or None and the sentence that says what is wrong with it."""
    value = (scores.get(model) or {}).get(score)
    if value is None:
        return None, f"{score} of the {model} model is missing, so it can't be judged."
    if not math.isfinite(value):
        return None, f"{score} of the {model} model is {value}, not a finite number."
    return value, ""
