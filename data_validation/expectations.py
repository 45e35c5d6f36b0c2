"""The judgement of a set as a whole, by Great Expectations, with its Data Docs page.

Great Expectations takes seconds to import and keeps its context in a global of the process: it is
imported where it is used, and one set is judged at a time.
"""

import os
import re
import threading
import warnings
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import polars as pl

from alignflow.config import Config
from alignflow.data_validation.config import DataKind, ExpectationName, SetExpectations, Severity
from alignflow.data_validation.statistics import SetStatistics

_ONE_AT_A_TIME = threading.Lock()
_LINK_TO_SUITE = re.compile(r'<a href="[^"]*/expectations/[^"]*"\s*>(.*?)</a>')


class ExpectationResult(Config):
    """What became of one expectation."""

    name: str
    severity: Severity
    success: bool
    observed: float | None = None
    """What was measured, where that is one number."""


class _Expected(NamedTuple):
    """One expectation: its name in our reports and how Great Expectations calls it."""

    name: ExpectationName
    severity: Severity
    type: str
    arguments: dict[str, Any]


def judge_set(
    statistics: SetStatistics,
    kind: DataKind,
    expectations: SetExpectations,
    docs: Path,
    *,
    title: str,
) -> list[ExpectationResult]:
    """Judge a set and write the Data Docs page, `index.html`, into a folder.

    The page holds nothing that changes from run to run, loads nothing and runs no script, so that
    equal sets have equal pages and opening one tells nobody.

    Args:
        statistics: Counts over the set and lengths of a sample of its rows, of which it has one
            or more.
        kind: What the rows are.
        expectations: The bounds.
        docs: Folder of the page, made where it isn't there.
        title: Heading of the page, plain text.
    """
    with _ONE_AT_A_TIME:
        gx = _import_great_expectations()
        context = gx.get_context(mode="ephemeral")
        context.variables.progress_bars = {"globally": False, "metric_calculations": False}
        source = context.data_sources.add_pandas("dataset")
        results, sections = [], []
        for name, rows, expected in (
            ("set", [_facts(statistics)], _expected_of_set(kind, statistics, expectations)),
            ("rows", statistics.sample, _expected_of_rows(kind, expectations)),
        ):
            expected = [
                item._replace(severity=expectations.severities.get(item.name, item.severity))
                for item in expected
            ]
            result = _validate(gx, context, source, name, rows, expected)
            results += _results(result, expected)
            sections += _render(result)
    docs.mkdir(parents=True, exist_ok=True)
    (docs / "index.html").write_text(_page(title, results, sections), encoding="utf-8")
    return results


def _facts(statistics: SetStatistics) -> dict[str, float]:
    """Return what is known of the set as a whole, as the one row of a frame."""
    return {
        "num_rows": float(statistics.counts["accept"]),
        "refused_share": statistics.refused_share,
        "duplicate_prompt_share": statistics.flag_share("duplicate_prompt"),
        "score_tie_share": statistics.flag_share("score_tie"),
        "duplicate_share": statistics.duplicate_share,
        "near_duplicate_share": statistics.near_duplicate_share or 0.0,
        "main_script_share": statistics.main_script_share,
        "largest_rating_share": statistics.largest_rating_share or 0.0,
    }


def _expected_of_set(
    kind: DataKind, statistics: SetStatistics, bounds: SetExpectations
) -> list[_Expected]:
    expected = [
        _Expected("enough_rows", "critical", *_bounded("num_rows", at_least=bounds.min_rows)),
        _Expected(
            "few_refused",
            "critical",
            *_bounded("refused_share", at_most=bounds.max_refused_share),
        ),
        _Expected(
            "few_repeated_prompts",
            "warning",
            *_bounded("duplicate_prompt_share", at_most=bounds.max_duplicate_prompt_share),
        ),
        _Expected(
            "few_duplicates",
            "warning",
            *_bounded("duplicate_share", at_most=bounds.max_duplicate_share),
        ),
        _Expected(
            "one_script",
            "warning",
            *_bounded("main_script_share", at_least=bounds.min_main_script_share),
        ),
    ]
    if statistics.near_duplicate_share is not None:
        near = _bounded("near_duplicate_share", at_most=bounds.max_near_duplicate_share)
        expected.append(_Expected("few_near_duplicates", "warning", *near))
    if statistics.ratings:
        agreeing = _bounded("largest_rating_share", at_most=bounds.max_rating_share)
        expected.append(_Expected("ratings_vary", "warning", *agreeing))
    if kind == "preference":
        ties = _bounded("score_tie_share", at_most=bounds.max_score_tie_share)
        expected.append(_Expected("few_score_ties", "warning", *ties))
    return expected


def _bounded(
    column: str, *, at_least: float | None = None, at_most: float | None = None
) -> tuple[str, dict[str, Any]]:
    """Return the expectation on a column of a frame that has one row."""
    return "ExpectColumnMaxToBeBetween", {
        "column": column,
        "min_value": at_least,
        "max_value": at_most,
    }


def _expected_of_rows(kind: DataKind, bounds: SetExpectations) -> list[_Expected]:
    expected = [
        _Expected("ids_unique", "warning", "ExpectColumnValuesToBeUnique", {"column": "id"}),
        _Expected(
            "response_length",
            "warning",
            "ExpectColumnMedianToBeBetween",
            {
                "column": "response_chars",
                "min_value": bounds.min_median_response_chars,
                "max_value": bounds.max_median_response_chars,
            },
        ),
    ]
    if kind == "preference":
        biases: tuple[tuple[ExpectationName, str], ...] = (
            ("no_length_bias_longer", "chosen_is_longer"),
            ("no_length_bias_shorter", "chosen_is_shorter"),
        )
        expected += [
            _Expected(
                name,
                "warning",
                "ExpectColumnMeanToBeBetween",
                {"column": column, "max_value": bounds.max_length_bias},
            )
            for name, column in biases
        ]
    if kind == "unpaired":
        share = bounds.max_label_share
        expected.append(
            _Expected(
                "both_labels",
                "warning",
                "ExpectColumnMeanToBeBetween",
                {"column": "is_desirable", "min_value": 1 - share, "max_value": share},
            )
        )
    return expected


def _import_great_expectations() -> ModuleType:
    # Read at import and again with each context: nothing of a set is reported to anyone.
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import great_expectations as gx
    module: ModuleType = gx
    return module


def _validate(
    gx: ModuleType,
    context: Any,
    source: Any,
    name: str,
    rows: list[dict[str, Any]],
    expected: Sequence[_Expected],
) -> Any:
    """Return Great Expectations' result for one frame."""
    suite = context.suites.add(
        gx.ExpectationSuite(
            name=name,
            expectations=[
                getattr(gx.expectations, item.type)(severity=item.severity, **item.arguments)
                for item in expected
            ],
        )
    )
    batches = source.add_dataframe_asset(name).add_batch_definition_whole_dataframe(name)
    definition = context.validation_definitions.add(
        gx.ValidationDefinition(name=name, data=batches, suite=suite)
    )
    result = definition.run(
        batch_parameters={"dataframe": pl.DataFrame(rows).to_pandas()}, result_format="SUMMARY"
    )
    for item in result.results:
        # The page's renderer doesn't take numpy's floats.
        observed = item.result.get("observed_value")
        if observed is not None:
            item.result["observed_value"] = float(observed)
    return result


def _results(result: Any, expected: Sequence[_Expected]) -> list[ExpectationResult]:
    """Return the outcomes in the order in which they were expected."""
    by_key = {
        (item.expectation_config.type, item.expectation_config.kwargs["column"]): item
        for item in result.results
    }
    outcomes = []
    for wanted in expected:
        item = by_key[_snake_case(wanted.type), wanted.arguments["column"]]
        if item.exception_info.get("raised_exception"):
            raise RuntimeError(f"expectation {wanted.name}: {item.exception_info}")
        outcomes.append(
            ExpectationResult(
                name=wanted.name,
                severity=wanted.severity,
                success=bool(item.success),
                observed=item.result.get("observed_value"),
            )
        )
    return outcomes


def _snake_case(name: str) -> str:
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")


def _render(result: Any) -> list[str]:
    """Return the sections of Great Expectations' validation page as HTML."""
    from great_expectations.render.renderer import ValidationResultsPageRenderer
    from great_expectations.render.view import DefaultJinjaSectionView

    document = ValidationResultsPageRenderer().render(result).to_json_dict()
    sections = []
    for index, section in enumerate(document["sections"], start=1):
        blocks = section["content_blocks"]
        # What folds away holds times and ids of this process, and needs a script to unfold.
        section["content_blocks"] = [b for b in blocks if b["content_block_type"] != "collapse"]
        view = {"section": section, "section_loop": {"index": index}}
        html = DefaultJinjaSectionView().render(view)
        sections.append(_LINK_TO_SUITE.sub(r"\1", html))  # there is no such page beside ours
    return sections


def _page(title: str, results: Sequence[ExpectationResult], sections: Sequence[str]) -> str:
    style = files("alignflow.data_validation").joinpath("data_docs.css").read_text("utf-8")
    rows = "".join(
        f"<tr><td>{'passed' if item.success else 'failed'}</td><td>{escape(item.name)}</td>"
        f"<td>{item.severity}</td>"
        f"<td>{'' if item.observed is None else format(item.observed, 'g')}</td></tr>\n"
        for item in results
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        # Ids of rows are shown: whatever is in one, nothing runs and nothing is loaded.
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n<table>\n<thead><tr><th>Status</th><th>Expectation</th>"
        f"<th>Severity</th><th>Observed</th></tr></thead>\n<tbody>\n{rows}</tbody>\n</table>\n"
        f"{''.join(sections)}\n</body>\n</html>\n"
    )
