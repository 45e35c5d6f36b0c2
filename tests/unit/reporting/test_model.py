import json
import math
from typing import Any

import pytest
from pydantic import ValidationError

from alignflow.reporting.model import (
    Answer,
    Difference,
    Lineage,
    LineageEdge,
    LineageNode,
    ModelRole,
    ReportData,
    ScoreRow,
    TrainingCurve,
)


def score(base: float, aligned: float, **changes: Any) -> ScoreRow:
    """A score whose difference is known to a thousandth, over 100 items."""
    values: dict[ModelRole, float] = {"base": base, "aligned": aligned}
    fields = {
        "name": "s/x",
        "label": "X",
        "values": values,
        "higher_is_better": True,
        "differences": {"base": difference(aligned - base, error=0.001)},
    }
    return ScoreRow.model_validate({**fields, **changes})


def difference(value: float, *, error: float, num_items: int = 100) -> Difference:
    return Difference(value=value, interval=(value - error, value + error), num_items=num_items)


def test_report_survives_json(report: ReportData) -> None:
    assert ReportData.model_validate_json(report.model_dump_json()) == report


def test_lone_surrogate_becomes_the_replacement_character() -> None:
    text = json.loads(r'"a\ud800b"')
    assert Answer(text=text).text == "a\N{REPLACEMENT CHARACTER}b"


def test_surrogate_pair_stays_one_character() -> None:
    assert Answer(text="\ud83d\ude00").text == "\N{GRINNING FACE}"


@pytest.mark.parametrize(
    ("row", "change"),
    [
        (score(0.5, 0.6), "better"),
        (score(0.6, 0.5), "worse"),
        (score(9.0, 8.0, higher_is_better=False), "better"),
        (score(0.5, 0.5), "same"),
        (score(0.5, 0.6, higher_is_better=None), "neutral"),
        (score(0.5, 0.6, differences={}), None),
    ],
)
def test_change_follows_the_direction(row: ScoreRow, change: str | None) -> None:
    assert row.change == change


@pytest.mark.parametrize(
    ("of_base", "change"),
    [
        (difference(0.09, error=0.1), "unclear"),
        (difference(0.11, error=0.1), "better"),
        (difference(-0.11, error=0.1), "worse"),
        (difference(0.4, error=0.01, num_items=3), "unclear"),
        (difference(0.4, error=0.01, num_items=10), "better"),
        (Difference(value=0.4, num_items=100), "unclear"),
    ],
)
def test_difference_is_clear_when_its_interval_lies_on_one_side_of_0(
    of_base: Difference, change: str
) -> None:
    assert score(0.5, 0.9, differences={"base": of_base}).change == change


def test_curve_merges_the_lines_of_a_step_and_keeps_the_later() -> None:
    curve = TrainingCurve.from_metrics(
        "sft",
        [
            {"phase": "load"},
            {"step": 0, "phase": "validate", "sft/held_out_loss": 2.5},
            {"step": 1, "phase": "train", "sft/loss": 2.4, "sft/grad_norm": 1.5},
            {"step": 2, "phase": "train", "sft/loss": 2.3},
            {"step": 2, "phase": "train", "sft/loss": 2.2},
            {"step": 2, "phase": "validate", "sft/held_out_loss": 2.1, "dpo/loss": 9.0},
        ],
    )
    assert [(p.step, p.loss, p.held_out_loss) for p in curve.points] == [
        (0, None, 2.5),
        (1, 2.4, None),
        (2, 2.2, 2.1),
    ]
    assert curve.points[1].grad_norm == 1.5


def test_curve_of_a_rollout_has_reward_divergence_and_length() -> None:
    line = {"step": 1, "ppo/reward": 0.4, "ppo/kl_nats": 2.5, "ppo/response_tokens": 31.0}
    (point,) = TrainingCurve.from_metrics(
        "ppo", [line, {"step": 1, "ppo/held_out_reward": 1}]
    ).points
    assert (point.reward, point.held_out_reward) == (0.4, 1)
    assert (point.kl_nats, point.response_tokens) == (2.5, 31)


@pytest.mark.parametrize("value", [math.nan, math.inf, "high", None])
def test_curve_leaves_out_what_is_no_finite_number(value: object) -> None:
    assert TrainingCurve.from_metrics("sft", [{"step": 1, "sft/loss": value}]).points == []


@pytest.mark.parametrize(
    ("ids", "edges", "message"),
    [
        (["a", "a"], [], "same id"),
        (["a"], [("a", "b")], "unknown node"),
        (["a", "b", "c"], [("a", "b"), ("b", "c"), ("c", "a")], "cycle"),
        (["a"], [("a", "a")], "cycle"),
    ],
)
def test_lineage_must_be_a_graph_without_cycles(
    ids: list[str], edges: list[tuple[str, str]], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        Lineage(
            nodes=[LineageNode(id=i, kind="model", label=i) for i in ids],
            edges=[LineageEdge(source=s, target=t) for s, t in edges],
        )
