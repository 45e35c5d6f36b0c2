"""The gate: every rule gets a reason, and whatever can't be judged fails."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from alignflow.evaluation.config import GateConfig, GateRule
from alignflow.evaluation.gate import RuleResult, Verdict, judge
from alignflow.evaluation.measures import Items, Measure

Values = float | Sequence[float] | None


def measures(scores: Mapping[str, Values] | None) -> dict[str, Measure] | None:
    """A measure a score: of the values of its items, or of one item; none for None."""
    if scores is None:
        return None
    values = {name: np.atleast_1d(value) for name, value in scores.items() if value is not None}
    return {
        name: Measure.mean(Items.of(range(len(of_items))), of_items, is_share=True)
        for name, of_items in values.items()
    }


def judge_one(rule: GateRule, **scores: Mapping[str, Values] | None) -> RuleResult:
    models = {model: measures(of_model) for model, of_model in scores.items()}
    verdict = judge(GateConfig(rules={"rule": rule}), models)
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
    verdict = judge(GateConfig(), {"aligned": measures({"s": 0.5})})
    assert not verdict.passed
    assert [rule.reason for rule in verdict.rules] == [
        "The recipe has no rules, so nothing can be judged: give gate.rules."
    ]


# 100 items of which 90 are right. With 95 % confidence 85 or more are: the exact (conservative)
# bound is 0.836, the normal one 0.9 - 1.645 * 0.03 = 0.851, and shares come in hundredths.
NINETY = [1.0] * 90 + [0.0] * 10


@pytest.mark.parametrize(("bound", "passed"), [(0.82, True), (0.87, False)])
def test_threshold_with_confidence_asks_more_than_the_score(bound: float, passed: bool) -> None:
    asked = GateRule(score="s", at_least=bound, confidence=0.95)
    result = judge_one(asked, aligned={"s": NINETY})
    assert result.passed == passed
    assert judge_one(GateRule(score="s", at_least=bound), aligned={"s": NINETY}).passed
    assert result.reason.startswith(
        f"s is 0.9 over 100 items: at least {bound} with 95 % confidence was asked for and "
        f"{'reached' if passed else 'missed'} (with it the score is at least 0.85)."
    )


def test_upper_threshold_with_confidence_looks_at_the_upper_bound() -> None:
    # The mirror image: 10 of 100, with 95 % confidence at most 15 to 17.
    wrong = [1 - value for value in NINETY]
    assert judge_one(
        GateRule(score="s", at_most=0.18, confidence=0.95), aligned={"s": wrong}
    ).passed
    assert not judge_one(
        GateRule(score="s", at_most=0.13, confidence=0.95), aligned={"s": wrong}
    ).passed


def test_not_worse_than_the_champion_with_confidence_is_judged_item_by_item() -> None:
    # Of 200 items the model fails 4 of those that the champion knows: the difference is -0.02, its
    # standard error sqrt(0.02 * 0.98 / 200) = 0.0099, so that 95 % lie above about -0.036. Judged
    # apart, each score has an error of 0.035, and a drop of 0.05 could not be excluded.
    champion = [1.0, 0.0] * 100
    aligned = [0.0, 0.0] * 4 + [1.0, 0.0] * 96
    rule = GateRule(score="s", compared_with="champion", max_drop=0.05, confidence=0.95)
    kept = judge_one(rule, aligned={"s": aligned}, champion={"s": champion})
    assert kept.passed
    assert kept.bound == pytest.approx(0.45)
    assert (
        "at most 0.05 less than the champion model's 0.5 with 95 % confidence was asked for and "
        "reached (with it the difference of -0.02 is at least -0.0"
    ) in kept.reason
    strict = rule.replaced(max_drop=0.03)
    assert not judge_one(strict, aligned={"s": aligned}, champion={"s": champion}).passed
    point = strict.replaced(confidence=None)
    assert judge_one(point, aligned={"s": aligned}, champion={"s": champion}).passed


def test_lower_is_better_with_confidence_looks_at_the_upper_bound() -> None:
    sft, aligned = [0.0] * 100, [1.0] * 5 + [0.0] * 95
    rule = GateRule(
        score="s", compared_with="sft", max_drop=0.1, higher_is_better=False, confidence=0.95
    )
    kept = judge_one(rule, aligned={"s": aligned}, sft={"s": sft})
    assert kept.passed
    assert "at most 0.1 more than the sft model's 0 " in kept.reason
    assert not judge_one(
        rule.replaced(max_drop=0.06), aligned={"s": aligned}, sft={"s": sft}
    ).passed


def test_too_few_items_for_the_confidence_are_said_not_passed() -> None:
    # 0.9^28 > 0.05 > 0.9^29.
    rule = GateRule(score="s", at_least=0.1, confidence=0.95)
    result = judge_one(rule, aligned={"s": [1.0] * 28})
    assert not result.passed
    assert "which takes items of 29 sources or more, and there are 28" in result.reason
    assert judge_one(rule, aligned={"s": [1.0] * 29}).passed


def test_models_that_agree_on_every_item_may_still_differ_on_others() -> None:
    # A share of 1 - 0.05^(1/50) = 0.058 of differing items would go unseen in 50, 5 times in 100.
    rule = GateRule(score="s", compared_with="sft", max_drop=0.058, confidence=0.95)
    scores = {"s": [1.0, 0.0] * 25}
    assert not judge_one(rule, aligned=scores, sft=scores).passed
    assert judge_one(rule.replaced(max_drop=0.059), aligned=scores, sft=scores).passed


def test_comparison_is_over_the_items_of_both_and_says_which_differ() -> None:
    # The champion was judged on ten items more, which it knew: they don't count against the model.
    rule = GateRule(score="s", compared_with="champion")
    result = judge_one(rule, aligned={"s": [1.0, 0.0]}, champion={"s": [1.0, 0.0] + [1.0] * 10})
    assert result.passed
    assert result.compared_value == 0.5
    assert "the 2 items that both were judged on" in result.reason
    assert "the aligned model on 0 others, that one on 10" in result.reason


def test_model_judged_on_other_items_altogether_can_not_be_compared_with() -> None:
    rule = GateRule(score="s", compared_with="champion")
    others = {"s": Measure.mean(Items.of(["another"]), [0.0])}
    config = GateConfig(rules={"rule": rule})
    verdict = judge(config, {"aligned": measures({"s": 0.5}), "champion": others})
    assert not verdict.passed
    assert "champion model was judged on none of the same items" in verdict.rules[0].reason


def win_rate(*outcomes: float) -> dict[str, Measure]:
    items = Items.of(range(len(outcomes)))
    return {"win_rate/champion": Measure.mean(items, outcomes, is_share=True)}


def test_win_rate_has_a_threshold_like_any_score() -> None:
    rule = GateRule(score="win_rate/champion", at_least=0.5, confidence=0.95)
    config = GateConfig(rules={"wins": rule})
    models = {"aligned": measures({"s": 1.0}), "champion": measures({"s": 1.0})}
    # 45 of 60: 0.75 less 1.645 errors of 0.056 is 0.66. 33 of 60: 0.55 - 0.106 = 0.44.
    assert judge(config, models, win_rates=win_rate(*[1.0] * 45, *[0.0] * 15)).passed
    assert not judge(config, models, win_rates=win_rate(*[1.0] * 33, *[0.0] * 27)).passed
    missing = judge(config, models)
    assert not missing.passed
    assert "have no answers to the same prompts" in missing.rules[0].reason


def test_win_rate_against_a_champion_that_is_not_there_passes() -> None:
    config = GateConfig(rules={"wins": GateRule(score="win_rate/champion", at_least=0.5)})
    verdict = judge(config, {"aligned": measures({"s": 1.0}), "champion": None})
    assert verdict.passed
    assert "no champion" in verdict.rules[0].reason


def test_judged_win_rate_that_is_missing_names_its_judge() -> None:
    config = GateConfig(rules={"wins": GateRule(score="judged_win_rate/sft", at_least=0.5)})
    verdict = judge(config, {"aligned": measures({"s": 1.0})})
    assert "no answers to the same prompts that the answer judge" in verdict.rules[0].reason


@pytest.mark.parametrize("score", ["win_rate/sft", "length_controlled_judged_win_rate/sft"])
def test_win_rate_compares_with_one_model_only(score: str) -> None:
    with pytest.raises(ValidationError, match="a win rate compares models already"):
        GateRule(score=score, at_least=0.5, compared_with="base")


def test_quality_of_the_answer_judge_is_no_model_s() -> None:
    with pytest.raises(ValidationError, match="answer_judge/accuracy is no model's"):
        GateRule(score="answer_judge/accuracy", compared_with="base")


def test_model_judged_on_a_part_of_the_items_is_refused() -> None:
    config = GateConfig(rules={"good": GateRule(score="a", at_least=0.1)})
    models = {"aligned": measures({"a": 0.5})}
    assert judge(config, models).passed
    verdict = judge(config, models, limited=["suites.truth.limit"])
    assert not verdict.passed
    assert [rule.passed for rule in verdict.rules] == [True, False]
    assert verdict.rules[1].reason == (
        "The model was judged on a part of the items (evaluation.suites.truth.limit), which is no "
        "ground to promote it: take the limit out of the recipe."
    )


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
    verdict = judge(GateConfig(rules=rules), {"aligned": measures({"a": 0.5})})
    assert [rule.passed for rule in verdict.rules] == [True, False]
    assert not verdict.passed


def test_a_score_by_a_weak_judge_fails_whatever_it_is_and_says_why() -> None:
    rules = {
        "kind": GateRule(score="prompts/toxicity_rate", at_most=1.0),
        "true": GateRule(score="t/mc1", at_least=0),
    }
    models = {"aligned": measures({"prompts/toxicity_rate": 0.0, "t/mc1": 0.5})}
    verdict = judge(GateConfig(rules=rules), models, weak_judges={"prompts": "The judge is weak."})
    assert [rule.passed for rule in verdict.rules] == [False, True]
    assert verdict.rules[0].reason == "The judge is weak."
    assert not verdict.passed


def test_verdict_survives_json() -> None:
    rules = {"kept": GateRule(score="a", at_least=0.1), "gone": GateRule(score="b", at_most=0.9)}
    verdict = judge(GateConfig(rules=rules), {"aligned": measures({"a": 0.5})})
    assert Verdict.from_json(verdict.to_json()) == verdict


@pytest.mark.parametrize("field", [{"max_drop": 0.1}, {"higher_is_better": False}])
def test_a_field_of_the_comparison_without_one_is_refused(field: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=f"{next(iter(field))} does nothing without"):
        GateRule.model_validate({"score": "s", "at_least": 0.1, **field})
