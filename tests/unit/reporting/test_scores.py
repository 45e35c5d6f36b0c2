import pytest

from alignflow.reporting.model import Difference, ScoreRow
from alignflow.reporting.scores import (
    format_difference,
    format_interval,
    format_score,
    score_row,
)


@pytest.mark.parametrize(
    ("name", "label", "is_share", "higher_is_better"),
    [
        ("truthful_qa/mc2", "Truthful qa, MC2", True, True),
        ("toxicity/macro_f1", "Toxicity, macro F1", True, True),
        ("reward_model/accuracy", "Reward model ranks pairs rightly", True, True),
        ("perplexity/response", "Perplexity of chosen responses", False, False),
        ("kl/parent_nats_per_token", "Distance from the parent", False, None),
        ("samples/mean_reward", "Reward of the sample answers", False, True),
        ("samples/helpfulness", "Helpfulness of the sample answers", False, True),
        ("samples/toxicity", "Toxicity of the sample answers", False, False),
        ("samples/humor", "Humor of the sample answers", False, None),
        ("steerlm/humor_response", "More humor when asked for it", False, True),
        ("my_suite/its_score", "My suite: its score", False, None),
        ("{label}/mc1", "{label}, MC1", True, True),
    ],
)
def test_scores_get_their_words(
    name: str, label: str, is_share: bool, higher_is_better: bool | None
) -> None:
    row = score_row(name, {"aligned": 0.5}, num_items=60)
    assert (row.name, row.label, row.num_items) == (name, label, 60)
    assert (row.is_share, row.higher_is_better) == (is_share, higher_is_better)


def test_shares_are_percentages_and_their_differences_points() -> None:
    lead = Difference(value=-0.0289, interval=(-0.05, 0.001), num_items=50)
    row = ScoreRow(name="s", label="S", is_share=True, differences={"base": lead})
    assert format_score(row, 0.4711) == "47.1 %"
    assert format_difference(row) == "\N{MINUS SIGN}2.9 pts"
    assert format_difference(row, "champion") == "\N{EN DASH}"
    assert format_interval(row, (0.4, 0.55)) == "40.0 to 55.0 %"
    assert format_interval(row, lead.interval, signed=True) == "\N{MINUS SIGN}5.0 to +0.1"
    assert format_interval(row, None) == "interval unknown"


def test_other_scores_keep_three_decimals_and_a_missing_one_is_a_dash() -> None:
    row = ScoreRow(name="s", label="S", values={"aligned": 9.87})
    assert format_score(row, 9.87) == "9.870"
    assert format_score(row, None) == format_difference(row) == "\N{EN DASH}"
