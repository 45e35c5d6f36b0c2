import json
from html.parser import HTMLParser
from typing import Any

import pytest

from alignflow.reporting.model import (
    RefusedRecord,
    ReportData,
    RuleOutcome,
    StageRecord,
    TrainingRows,
    VerdictSummary,
)
from alignflow.reporting.page import render_page, verdict_sentence

SECTIONS = [
    *("verdict", "scores", "wins", "worst", "training", "data", "tokens", "leaks"),
    *("lineage", "time", "samples", "run"),
]
HOSTILE = (
    "</title></style></pre></svg><script>alert(1)</script><img src=x onerror=alert(1)>"
    '"\' onclick="alert(1)" {{ 7 * 7 }} {% raw %} \u202e\u2066\x00\x1b[31m\u2028 ${x}'
)
# Words of a fixed vocabulary, which hold nothing hostile.
FIXED = {"status", "severity", "finished_at", "against"}


class Page(HTMLParser):
    """Collects the start tags with the names of their attributes, the links and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(name for name, _ in attrs)))
        self.ids += [value for name, value in attrs if name == "id" and value]
        self.links += [value for name, value in attrs if name in ("href", "src") and value]

    def handle_data(self, data: str) -> None:
        self.text += data


def poisoned(value: Any) -> Any:
    """Return the JSON value with hostile text after every text that isn't empty."""
    if isinstance(value, dict):
        return {k: v if k in FIXED else poisoned(v) for k, v in value.items()}
    if isinstance(value, list):
        return [poisoned(item) for item in value]
    return value + HOSTILE if isinstance(value, str) and value else value


def with_verdict(report: ReportData, *passed: bool) -> ReportData:
    rules = [RuleOutcome(name=f"rule_{i}", passed=p, reason="why") for i, p in enumerate(passed)]
    return report.replaced(verdict=VerdictSummary(passed=all(passed), rules=rules))


def test_page_has_every_section_in_order(report: ReportData) -> None:
    page = Page(render_page(report))
    assert [i for i in page.ids if i in SECTIONS] == SECTIONS


def test_sections_without_data_and_their_links_are_left_out(report: ReportData) -> None:
    bare = ReportData(
        pipeline="demo",
        run_id="r",
        finished_at=report.finished_at,
        seconds=1,
        recipe="name: demo",
        verdict=VerdictSummary(passed=True),
    )
    page = Page(render_page(bare))
    assert [i for i in page.ids if i in SECTIONS] == ["verdict", "run"]
    assert page.links == ["#run"]


def test_hostile_text_changes_no_tag_and_no_attribute(report: ReportData) -> None:
    hostile = ReportData.model_validate(poisoned(json.loads(report.model_dump_json())))
    page = Page(render_page(hostile))
    assert page.tags == Page(render_page(report)).tags
    assert "<script>alert(1)</script>" in page.text  # shown, as text
    assert "{{ 7 * 7 }}" in page.text


def test_hostile_characters_are_spelled_out(report: ReportData) -> None:
    hostile = ReportData.model_validate(poisoned(json.loads(report.model_dump_json())))
    html = render_page(hostile)
    assert not set(html) & set("\u202e\u2066\x00\x1b\u2028")
    assert "[U+202E]" in html
    html.encode("utf-8")


def test_page_has_no_script_and_loads_nothing(report: ReportData) -> None:
    html = render_page(report)
    page = Page(html)
    names = [name for name, _ in page.tags]
    assert not {"script", "img", "link", "iframe", "object", "embed", "form", "base"} & set(names)
    assert not [a for _, attributes in page.tags for a in attributes if a.startswith("on")]
    assert "default-src 'none'" in html
    assert "@import" not in html


@pytest.mark.parametrize(
    "url", ["javascript:alert(1)", " JavaScript:alert(1)", "java\tscript:x", "data:text/html,x"]
)
def test_urls_that_run_are_shown_but_not_linked(report: ReportData, url: str) -> None:
    links = report.links.replaced(prefect_run=url, model_version_url=url)
    page = Page(render_page(report.replaced(links=links)))
    assert url not in page.links
    assert all(link.startswith(("#", "http", "data_docs/")) for link in page.links)


def test_failed_rules_come_first(report: ReportData) -> None:
    text = Page(render_page(with_verdict(report, True, False, True))).text
    assert text.index("rule 1") < text.index("rule 0") < text.index("rule 2")


@pytest.mark.parametrize(
    ("passed", "sentence"),
    [
        ((True,), "The aligned model meets the one rule of the recipe; it is registered as "),
        ((True, True), "The aligned model meets all 2 rules of the recipe; it is registered as "),
        ((), "The recipe has no rules, so nothing stood against the aligned model; it is "),
        ((True, False, False), "The aligned model failed 2 of 3 rules, so nothing was registered."),
    ],
)
def test_verdict_in_one_sentence(
    report: ReportData, passed: tuple[bool, ...], sentence: str
) -> None:
    assert verdict_sentence(with_verdict(report, *passed)).startswith(sentence)


def test_scores_are_counted_by_what_their_difference_means(report: ReportData) -> None:
    text = " ".join(Page(render_page(report)).text.split())
    assert "3 better, 1 worse" in text
    assert "4 without a clear change" in text


def test_cost_is_left_out_without_a_price(report: ReportData) -> None:
    assert "Time and cost" in render_page(report)
    assert "Cost" not in Page(render_page(report.replaced(price_per_process_hour=None))).text


def test_cost_counts_every_process(report: ReportData) -> None:
    # Two processes for half an hour at 3 an hour each.
    stage = report.stages[0].replaced(seconds=1800, num_processes=2, status="computed")
    page = render_page(report.replaced(stages=[stage], price_per_process_hour=3.0))
    assert "3.00 USD" in Page(page).text


def test_unfiltered_text_comes_after_a_warning(report: ReportData) -> None:
    text = Page(render_page(report)).text
    samples = text.index("Answers, side by side")
    assert samples < text.index("Content warning", samples) < text.index("drink water", samples)
    examples = text.index("refused rows, as in the file")
    assert examples < text.index("Content warning", examples) < text.index("basil", examples)


def test_cut_and_refused_rows_of_training_are_told(report: ReportData) -> None:
    rows = TrainingRows(
        stage=report.curves[0].stage,
        num_rows=288,
        num_truncated=3,
        num_refused=1,
        refused=[RefusedRecord(id="row-17", reason="empty_mask")],
    )
    text = Page(render_page(report.replaced(training_rows=[rows]))).text
    assert "288 rows trained on; 3 rows cut at the length limit; 1 record refused." in text
    assert "row-17" in text
    assert "empty mask" in text


def test_reused_stages_cost_nothing(report: ReportData) -> None:
    stages = [
        StageRecord(name="sft", status="reused", seconds=7200),
        StageRecord(name="dpo", status="computed", seconds=1800, num_processes=2),
    ]
    page = render_page(report.replaced(stages=stages, price_per_process_hour=3.0, currency="EUR"))
    text = Page(page).text
    assert "3.00 EUR" in text
    assert "6.00" not in text


def test_cut_sequences_of_an_evaluation_are_told(report: ReportData) -> None:
    told = "Cut at the evaluation's length limit: 3 sequences of toxicity."
    text = " ".join(Page(render_page(report.replaced(num_truncated={"toxicity": 3}))).text.split())
    assert told in text
    left_out = report.replaced(num_left_out={"hhh": 12})
    assert "nothing to judge: 12 items of hhh." in " ".join(
        Page(render_page(left_out)).text.split()
    )
    assert "length limit:" not in Page(render_page(report)).text


def shown(report: ReportData) -> str:
    """Return the text of the page without white space, which cells of a table have none of."""
    return "".join(Page(render_page(report)).text.split())


def test_what_the_token_audit_found_stands_in_a_table(report: ReportData) -> None:
    text = shown(report)
    assert "20,000of40,000" + "52140310812" + "412of20,000" in text
    assert "30,211of1,234,567" in text
    assert "7responsecutaway" in text
    assert "morethantoken_audit.max_over_limit_share" in text
    assert "PreferencesDemonstrations3of44" in text


def test_a_set_s_card_and_ratings_stand_below_it(report: ReportData) -> None:
    text = shown(report)
    assert "quality" + "12304005" in text
    assert "LicenceApache-2.0" in text
    assert "Latin430,Cyrillic8" in text


def test_a_judge_of_answers_is_told_with_its_accuracy_and_its_weakness(report: ReportData) -> None:
    text = " ".join(Page(render_page(report)).text.split())
    assert "an accuracy of 71.1 % (61.7 to 79.7 %; 50 % is chance)" in text
    assert "prefers the same answer in both orders for 76.6 % (65.6 to 85.9 %) of 64 pairs" in text
    assert "Left out, as too long for it or its chat template: 3 comparisons." in text
    assert "at least 0.75 is asked for" in text
    assert "66.4 %" in text
    # Its table needs no rewards.
    alone = shown(report.replaced(win_rates=[]))
    assert "Whoseanswerwins" in alone
    assert "bytheirreward" not in alone
    assert "66.4%" in alone
