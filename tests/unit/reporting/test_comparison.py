"""Methods side by side: the table and its page."""

from datetime import UTC, datetime

from alignflow.reporting.comparison import (
    Comparison,
    MethodTrials,
    TrialResult,
    as_markdown,
    columns,
    rows,
)
from alignflow.reporting.page import render_comparison


def comparison() -> Comparison:
    def trial(seed: int, accuracy: float, *, models: int = 1) -> TrialResult:
        return TrialResult(
            seed=seed,
            scores={"preference/per_token_accuracy": accuracy},
            seconds=60.0 * seed,
            peak_memory_bytes=seed * 2**30,
            num_models=models,
        )

    return Comparison(
        pipeline="tiny",
        run_id="tiny-<b>1</b>",
        finished_at=datetime(2026, 1, 2, tzinfo=UTC),
        before={"base": {"preference/per_token_accuracy": 0.5}, "sft": {}},
        methods=[
            MethodTrials(method="dpo", trials=[trial(1, 0.6), trial(2, 0.8)]),
            MethodTrials(method="ppo", trials=[trial(1, 0.7, models=4)]),
        ],
        machine="2 CPU cores",
        versions={"torch": "2"},
        recipe="name: tiny",
    )


def test_scores_are_means_with_the_spread_of_the_seeds() -> None:
    # 0.6 and 0.8: mean 0.7, standard deviation sqrt(0.02) = 0.141.
    data = comparison()
    table = {row.label: row.cells for row in rows(data)}
    assert columns(data) == ["Base", "SFT", "DPO", "PPO"]
    cells = table["Prefers the chosen response, per token"]
    assert cells == ["50.0 %", "\N{EN DASH}", "70.0 \N{PLUS-MINUS SIGN} 14.1 %", "70.0 %"]


def test_costs_are_mean_time_and_the_most_of_memory_and_models() -> None:
    table = {row.label: row.cells for row in rows(comparison())}
    none = "\N{EN DASH}"
    assert table["Time"] == [none, none, "1 min 30 s", "1 min 00 s"]
    assert table["Peak memory"] == [none, none, "2.0 GiB", "1.0 GiB"]
    assert table["Models in memory"] == [none, none, "1", "4"]


def test_page_and_markdown_hold_the_table() -> None:
    data = comparison()
    page = render_comparison(data)
    assert "tiny-&lt;b&gt;1&lt;/b&gt;" in page
    assert "means over 2 seeds" in page
    lines = as_markdown(data).splitlines()
    assert lines[0] == "|  | Base | SFT | DPO | PPO |"
    assert len({line.count("|") for line in lines}) == 1
