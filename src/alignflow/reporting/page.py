"""The report page: one HTML file that needs nothing else, readable by who did not run it.

The data is hostile: refused rows and answers hold any text. Every expression of the templates is
spelled out by `visible` and then escaped, there is no script, and a content security policy of the
page forbids loading anything at all.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from alignflow.evaluation.judges.card import JudgeCard
from alignflow.reporting.charts import LineChart, dot_plot, line_chart
from alignflow.reporting.comparison import Comparison, columns, rows
from alignflow.reporting.histograms import histogram
from alignflow.reporting.judges import card_tables, reliability_plot
from alignflow.reporting.lineage import lineage_picture
from alignflow.reporting.model import (
    MODEL_LABELS,
    ROLE_LABELS,
    ROLES,
    ModelComparison,
    ModelRole,
    ReportData,
    ScoreRow,
    TrainingCurve,
)
from alignflow.reporting.scores import (
    format_difference,
    format_interval,
    format_score,
    format_share,
    format_share_interval,
    with_minus,
)
from alignflow.reporting.text import (
    format_bytes,
    format_compact,
    format_number,
    format_seconds,
    humanise,
    plural,
    stage_name,
    visible,
)

_CHARTS = {
    "Loss": [("loss", "training"), ("held_out_loss", "held out")],
    "Pairs ranked rightly": [("accuracy", "training"), ("held_out_accuracy", "held out")],
    "Reward": [("reward", "training"), ("held_out_reward", "held out")],
    "Nats from the start": [("kl_nats", "a response")],
    "Response length": [("response_tokens", "tokens")],
    "Gradient norm": [("grad_norm", "before clipping")],
    "Learning rate": [("learning_rate", "schedule")],
}
_LINKED_SCHEMES = {"", "http", "https", "file"}


def render_page(data: ReportData) -> str:
    """Return the page as one HTML document; write it as UTF-8."""
    return (
        _environment()
        .get_template("page.html.jinja")
        .render(
            data=data,
            summary=verdict_sentence(data),
            training_rows={rows.stage: rows for rows in data.training_rows},
            charts={curve.stage: _stage_charts(curve) for curve in data.curves},
            scores_heading="Scores, before and after",
            models=_models_sentence(data),
            subject="the aligned model",
            **_scores_context(data, ROLE_LABELS),
            judge_tables=[card_tables(judge.card) for judge in data.judges],
            judge_plots=[reliability_plot(judge.card) for judge in data.judges],
            lineage=lineage_picture(data.lineage),
            longest_s=max((stage.seconds for stage in data.stages), default=0.0) or 1.0,
        )
    )


def render_models(data: ModelComparison) -> str:
    """Return the page of two models side by side as one HTML document."""
    return (
        _environment()
        .get_template("models.html.jinja")
        .render(
            data=data,
            scores_heading="Scores",
            models="Both models on the items that each was judged on.",
            subject="B",
            **_scores_context(data, MODEL_LABELS),
        )
    )


def _scores_context(
    data: ReportData | ModelComparison, labels: Mapping[ModelRole, str]
) -> dict[str, Any]:
    """Return what the sections on scores show besides the data."""
    return {
        "roles": [role for role in ROLES if any(role in row.values for row in data.scores)],
        "role_labels": labels,
        "changes": _count_changes(data.scores),
        "dot_plots": {row.name: dot_plot(row, labels, width=250) for row in data.scores},
        "group_plots": {
            (row.name, group): dot_plot(
                row.replaced(values=of_group.values, intervals=of_group.intervals),
                labels,
                width=250,
            )
            for row in data.scores
            for group, of_group in row.groups.items()
        },
        "histograms": [
            histogram(each, labels, width=260, height=150) for each in data.distributions
        ],
    }


def _models_sentence(data: ReportData) -> str:
    has_champion = any("champion" in row.values for row in data.scores)
    champion = ", the champion that serves now" if has_champion else ""
    return f"The base model as it came, after supervised fine-tuning (SFT){champion}, and aligned."


def verdict_sentence(data: ReportData) -> str:
    """Return the verdict and what followed from it, in one sentence."""
    rules = data.verdict.rules
    failed = sum(not rule.passed for rule in rules)
    if not data.verdict.passed:
        which = f"failed {failed} of {plural(len(rules), 'rule')}" if rules else "was refused"
        return f"The aligned model {which}, so nothing was registered."
    if not rules:
        met = "The recipe has no rules, so nothing stood against the aligned model"
    elif len(rules) == 1:
        met = "The aligned model meets the one rule of the recipe"
    else:
        met = f"The aligned model meets all {len(rules)} rules of the recipe"
    version = data.links.model_version
    return f"{met}; it is registered as {version}." if version else f"{met}."


def _count_changes(scores: Sequence[ScoreRow]) -> dict[str, int]:
    """Return how many scores became better and worse, and how many did neither clearly."""
    changes = [row.change for row in scores if row.change not in (None, "neutral")]
    better, worse = changes.count("better"), changes.count("worse")
    return {"better": better, "worse": worse, "unclear": len(changes) - better - worse}


def _stage_charts(curve: TrainingCurve) -> list[LineChart]:
    """Return the charts of a stage that have something to show."""
    charts = (
        line_chart(title, curve.points, series, width=260, height=170)
        for title, series in _CHARTS.items()
    )
    return [chart for chart in charts if chart]


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("alignflow.reporting"),
        autoescape=True,
        finalize=_spelled_out,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "bytes": format_bytes,
        "compact": format_compact,
        "difference": format_difference,
        "file_name": lambda path: PurePosixPath(path).name or path,
        "humanise": humanise,
        "interval": format_interval,
        "linked": _is_linked,
        "minus": with_minus,
        "number": format_number,
        "plural": plural,
        "score": format_score,
        "share": format_share,
        "share_interval": format_share_interval,
        "seconds": format_seconds,
        "stage_name": stage_name,
    }
    return environment


def _spelled_out(value: Any) -> str:
    """Make the characters of an expression visible; markup of our own macros stays as it is."""
    return value if isinstance(value, Markup) else visible(str(value))


def _is_linked(url: str | None) -> bool:
    """Return whether a URL may stand in a link: no script, no data."""
    if not url:
        return False
    try:
        return urlsplit(visible(url)).scheme in _LINKED_SCHEMES
    except ValueError:
        return False


def render_judge(card: JudgeCard) -> str:
    """Return the card of a judge as one HTML document."""
    template = _environment().get_template("judge.html.jinja")
    return template.render(card=card, tables=card_tables(card), plot=reliability_plot(card))


def render_comparison(data: Comparison) -> str:
    """Return the page that shows methods side by side as one HTML document."""
    return (
        _environment()
        .get_template("comparison.html.jinja")
        .render(
            data=data,
            heads=columns(data),
            table=rows(data),
            num_seeds=max(len(method.trials) for method in data.methods),
        )
    )
