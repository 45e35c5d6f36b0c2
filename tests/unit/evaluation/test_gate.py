"""The gate: every rule gets a reason, and whatever can't be judged fails."""

import math
from typing import Any

import pytest
from pydantic import ValidationError

from alignflow.evaluation.config import GateConfig, GateRule
from alignflow.evaluation.gate import RuleResult, Verdict, judge


def judge_one(rule: GateRule, **scores: dict[str, float | None] | None) -> RuleResult:
    verdict = judge(GateConfig(rules={"rule": rule}), scores)
    assert verdict.passed == verdict.rules[0].passed
    return verdict.rules[0]


@pytest.mark.parametrize(("value", "passed"), [(0.39, False), (0.4, True), (0.41, True)])
def test_at_least_includes_its_bound(value: float, passed: bool) -> None:
    result = judge_one(GateRule(score="t/mc2", at_least=0.4), aligned={"t/mc2": value})
    assert (result.passed, result.value, result.bound) == (passed, value, 0.4)


@pytest.mark.parametrize(("value", "passed"), [(2.9, True), (3.0, True), (3.1, False)])
def test_at_most_includes_its_bound(value: float, passed: bool) -> None:
    assert judge_one(GateRule(score="kl", at_most=3.0), aligned={"kl": value}).passed == passed


def test_reason_names_score_value_and_bound() -> None:
    result = judge_one(GateRule(score="t/mc2", at_least=0.4), aligned={"t/mc2": 0.3125})
    assert result.reason == "t/mc2 is 0.3125: at least 0.4 was asked for and missed."


def test_of_two_conditions_the_broken_one_decides() -> None:
    rule = GateRule(score="t/mc2", at_least=0.2, compared_with="base", max_drop=0.01)
    result = judge_one(rule, aligned={"t/mc2": 0.3}, base={"t/mc2": 0.4})
    assert not result.passed
    assert result.bound == pytest.approx(0.39)
    assert result.compared_value == 0.4
    assert "base 0.4, allowed drop 0.01" in result.reason


def test_drop_of_exactly_the_allowed_size_passes() -> None:
    # 0.8 - 0.1 is 0.7000000000000001 in binary.
    rule = GateRule(score="s", compared_with="sft", max_drop=0.1)
    assert judge_one(rule, aligned={"s": 0.7}, sft={"s": 0.8}).passed


def test_lower_is_better_turns_the_comparison_round() -> None:
    rule = GateRule(
        score="perplexity/response", compared_with="sft", max_drop=1.0, higher_is_better=False
    )
    name = "perplexity/response"
    assert judge_one(rule, aligned={name: 8.0}, sft={name: 7.0}).passed
    assert not judge_one(rule, aligned={name: 8.1}, sft={name: 7.0}).passed


def test_no_champion_passes_but_one_without_the_score_does_not() -> None:
    rule = GateRule(score="s", compared_with="champion")
    first = judge_one(rule, aligned={"s": 0.5}, champion=None)
    assert first.passed
    assert "no champion" in first.reason
    assert not judge_one(rule, aligned={"s": 0.5}, champion={"other": 1.0}).passed
    assert not judge_one(rule, aligned={"s": 0.5}, champion={}).passed


def test_without_a_rule_nothing_passes() -> None:
    verdict = judge(GateConfig(), {"aligned": {"s": 0.5}})
    assert not verdict.passed
    assert [rule.reason for rule in verdict.rules] == [
        "The recipe has no rules, so nothing can be judged: give gate.rules."
    ]


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_score_that_is_missing_or_not_finite_fails_and_says_so(value: float | None) -> None:
    result = judge_one(GateRule(score="s", at_most=1.0), aligned={"s": value})
    assert not result.passed
    assert result.value is None
    assert "missing" in result.reason or "not a finite number" in result.reason


def test_missing_score_of_the_compared_model_fails() -> None:
    rule = GateRule(score="s", compared_with="base")
    assert "base model is missing" in judge_one(rule, aligned={"s": 0.5}).reason


def test_verdict_passes_only_when_every_rule_does() -> None:
    rules = {"good": GateRule(score="a", at_least=0.1), "bad": GateRule(score="a", at_least=0.9)}
    verdict = judge(GateConfig(rules=rules), {"aligned": {"a": 0.5}})
    assert [rule.passed for rule in verdict.rules] == [True, False]
    assert not verdict.passed


def test_a_score_by_a_weak_judge_fails_whatever_it_is_and_says_why() -> None:
    rules = {
        "kind": GateRule(score="prompts/toxicity_rate", at_most=1.0),
        "true": GateRule(score="t/mc1", at_least=0),
    }
    scores = {"aligned": {"prompts/toxicity_rate": 0.0, "t/mc1": 0.5}}
    verdict = judge(GateConfig(rules=rules), scores, weak_judges={"prompts": "The judge is weak."})
    assert [rule.passed for rule in verdict.rules] == [False, True]
    assert verdict.rules[0].reason == "The judge is weak."
    assert not verdict.passed


def test_verdict_survives_json() -> None:
    rules = {"kept": GateRule(score="a", at_least=0.1), "gone": GateRule(score="b", at_most=0.9)}
    verdict = judge(GateConfig(rules=rules), {"aligned": {"a": 0.5}})
    assert Verdict.from_json(verdict.to_json()) == verdict


@pytest.mark.parametrize("field", [{"max_drop": 0.1}, {"higher_is_better": False}])
def test_a_field_of_the_comparison_without_one_is_refused(field: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=f"{next(iter(field))} does nothing without"):
        GateRule.model_validate({"score": "s", "at_least": 0.1, **field})
