"""Cards of judges: all that they say, in words and as a picture."""

import pytest

from alignflow.evaluation.judges.card import (
    Confusion,
    Functionality,
    GroupQuality,
    JudgeCard,
    Measured,
    ReliabilityBin,
    Transfer,
)
from alignflow.evaluation.judges.config import DataFile
from alignflow.reporting.judges import card_tables, reliability_plot
from alignflow.reporting.model import JudgeSummary, ReportData
from alignflow.reporting.page import render_judge, render_page

HOSTILE = "<script>alert(1)</script>"


@pytest.fixture
def card() -> JudgeCard:
    confusion = Confusion(
        true_positives=30, false_positives=5, true_negatives=60, false_negatives=7
    )
    bins = [
        ReliabilityBin(mean_probability=0.0, share_positive=0.25, num_examples=80),
        ReliabilityBin(mean_probability=1.0, share_positive=0.5, num_examples=22),
    ]
    return JudgeCard(
        task="toxicity",
        threshold=0.5,
        num_examples=1102,
        num_positive=37,
        num_repeated=3,
        num_contradictory=2,
        num_references=0,
        num_features=9,
        num_folds=2,
        seed=7,
        measured=Measured(
            auc=0.875,
            accuracy=0.75,
            brier=0.125,
            ece=0.0625,
            confusion=confusion,
            reliability=bins,
            groups={HOSTILE: GroupQuality(num_negative=8, false_positive_rate=0.125)},
        ),
        auc_by_fold=[0.86, 0.89],
        transfer=Transfer(
            auc=0.6,
            accuracy=0.7,
            functionalities={
                "slur_reclaimed_nh": Functionality(is_hateful=False, num_cases=8, accuracy=0.625)
            },
            groups={"women": GroupQuality(num_negative=0, false_positive_rate=None)},
        ),
        licence="MIT",
        files=[DataFile(role="data", name="statements.json", sha256="ab" * 32)],
    )


def test_tables_say_all_that_the_card_does(card: JudgeCard) -> None:
    rows = {name: value for _, table in card_tables(card) for name, value in table}
    assert rows["in each fold"] == "0.860, 0.890"
    assert rows["not toxic, but told so"] == "5"
    assert rows["toxic, but not told so"] == "7"
    assert rows["texts"] == "1,102, 37 of them toxic"
    assert rows["left out as repetitions"] == "3"
    assert rows[HOSTILE] == "12.5 % of 8"
    assert rows["slur reclaimed (not hateful)"] == "62.5 % of 8"
    assert rows["women"] == "none"
    assert rows["licence"] == "MIT"
    assert rows["data"] == f"statements.json sha256 {'ab' * 32}"
    assert "left out as reference answers" not in rows


def test_reliability_is_drawn_to_scale(card: JudgeCard) -> None:
    # 0..1 goes from 36 to 212 across and from 196 up to 8: .25 is 47 above, .5 is 94.
    plot = reliability_plot(card)
    assert [(dot.x, dot.y) for dot in plot.dots] == [(36.0, 149.0), (212.0, 102.0)]
    assert plot.path == "M36.0 149.0L212.0 102.0"
    assert plot.dots[0].title == "80 texts at 0 %: 25.0 % are toxic"


def test_pages_show_the_card_escaped(card: JudgeCard, report: ReportData) -> None:
    summary = JudgeSummary(suite="continued", card=card, objection="The judge is weak.")
    pages = [render_judge(card), render_page(report.replaced(judges=[summary]))]
    for page in pages:
        assert "0.875" in page
        assert "80 texts at 0 %: 25.0 % are toxic" in page
        assert HOSTILE not in page
        assert "&lt;script&gt;alert(1)" in page
    assert "The judge is weak." in pages[1]
    assert 'id="judges"' not in render_page(report)
