"""Results files: written by benchmarks alone, row by row, with machine and versions."""

import argparse
import os
import re
from importlib.metadata import version
from pathlib import Path

import results
from results import Table

ABOUT = "What was measured."


def update(
    path: Path,
    row: tuple[str, str],
    *,
    columns: tuple[str, str] = ("stage", "n"),
    also: tuple[str, ...] = (),
) -> None:
    results.update(path, "Title", ABOUT, Table(columns, (row,)), also=also)


def rows_of(path: Path) -> list[tuple[str, ...]]:
    (table,) = Table.read_all(path.read_text())
    rows = table.rows
    assert all(re.fullmatch(r"\d+ [A-Z][a-z]+ 20\d\d", row[-1]) for row in rows)
    return [row[:2] for row in rows]


def test_a_table_is_read_as_it_was_written() -> None:
    table = Table(("model", "tokens/s"), (("tiny", "1,000"), ("135M", "-")))
    assert str(table).splitlines()[1] == "| --- | ---: |"
    assert Table.read_all(f"# Title\n\n{table}\n\nText.\n\n{table}\n") == [table, table]
    assert Table.read_all("# Title\n") == []


def test_a_file_says_when_and_on_what_it_was_measured(tmp_path: Path) -> None:
    table = Table(("a",), (("1",),))
    results.write(tmp_path / "new" / "r.md", "Title", ABOUT, [table, "After."], also=("trl 1",))
    title, about, facts, body, after = (tmp_path / "new" / "r.md").read_text().split("\n\n")
    assert (title, about, body, after) == ("# Title", ABOUT, str(table), "After.\n")
    facts = facts.replace("\n", " ")
    assert re.match(r"\d+ [A-Z][a-z]+ 20\d\d; ", facts)
    assert f"{len(os.sched_getaffinity(0))} cores of " in facts
    assert facts.endswith("trl 1.")
    for package in ("torch", "megatron-core", "transformers"):
        assert f"{package} {version(package)}" in facts


def test_a_row_replaces_the_one_that_begins_alike(tmp_path: Path) -> None:
    path = tmp_path / "r.md"
    update(path, ("sft", "1"))
    update(path, ("dpo", "2"))
    update(path, ("sft", "3"))
    assert rows_of(path) == [("sft", "3"), ("dpo", "2")]


def test_rows_of_other_versions_or_other_columns_go(tmp_path: Path) -> None:
    path = tmp_path / "r.md"
    update(path, ("sft", "1"))
    update(path, ("dpo", "2"), columns=("stage", "m"))
    assert rows_of(path) == [("dpo", "2")]
    update(path, ("ppo", "3"), columns=("stage", "m"), also=("trl 2",))
    assert rows_of(path) == [("ppo", "3")]


def test_the_option_names_the_file() -> None:
    parser = argparse.ArgumentParser()
    results.add_write_option(parser, "cost")
    assert parser.parse_args([]).write is None
    assert parser.parse_args(["--write"]).write == results.RESULTS / "cost.md"
    assert parser.parse_args(["--write", "x.md"]).write == Path("x.md")


def test_options_are_told_where_they_differ_from_their_defaults() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--stage")
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--models", nargs="+", default=["tiny"])
    parser.add_argument("--once", action="store_true")
    results.add_write_option(parser, "cost")

    def given(*arguments: str) -> str:
        return results.options_given(parser, parser.parse_args(arguments), but=("stage",))

    assert given("--stage", "sft", "--max-length", "512", "--write") == "defaults"
    assert given("--stage", "sft", "--once") == "`--once`"
    assert given("--models", "30M", "1B", "--max-length", "64") == (
        "`--max-length 64 --models 30M 1B`"
    )


def test_pages_have_the_tables_of_the_files() -> None:
    texts = {page.name: page.read_text(encoding="utf-8") for page in results.QUOTING}
    assert {name: results.with_quotes(text) for name, text in texts.items()} == texts
    assert "<!-- table 1 of vs_trl.md -->" in texts["README.md"]
    assert "<!-- table 1 of judges.md -->" in texts["judges.md"]
