"""The sample data of `examples/`: made by its script, sound by our own checks, free of overlap."""

import csv
import importlib.util
import json
import os
import re
import statistics
import subprocess
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from alignflow.data_validation.check import check_file
from alignflow.data_validation.config import DataKind

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPT = EXAMPLES / "make_samples.py"
TRAINING_SETS: dict[str, DataKind] = {
    "demonstrations.jsonl": "sft",
    "preferences.jsonl": "preference",
    "attributes.jsonl": "steerlm",
    "styles.jsonl": "steerlm",
}
DERIVED_SETS: dict[str, DataKind] = {
    "feedback.jsonl": "unpaired",
    "scored_preferences.jsonl": "preference",
}
"""Sets that say what the attributes say in another form, and so have their prompts."""
MIN_ROWS = {
    "demonstrations.jsonl": 300,
    "preferences.jsonl": 300,
    "attributes.jsonl": 150,
    "styles.jsonl": 120,
    "feedback.jsonl": 150,
    "scored_preferences.jsonl": 50,
    "truthfulness_mc.json": 60,
    "toxicity.json": 60,
}
PAIR = ("chosen", "rejected")
MADE_FILES = [*MIN_ROWS, "truthfulness.csv"]

Row = dict[str, Any]


def load(name: str) -> list[Row]:
    text = (EXAMPLES / name).read_text(encoding="utf-8")
    if name.endswith(".jsonl"):
        return [json.loads(line) for line in text.splitlines()]
    rows: list[Row] = json.loads(text)
    return rows


def normalise(text: str) -> str:
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(character for character in folded if character.isalnum())


def messages_of(value: str | list[dict[str, str]], role: str = "user") -> list[dict[str, str]]:
    return [{"role": role, "content": value}] if isinstance(value, str) else value


def prompt_of(row: Row) -> str:
    """Return everything before the last answer as one normalised text."""
    messages = messages_of(row["prompt"]) if "prompt" in row else row["messages"][:-1]
    return normalise(" ".join(message["content"] for message in messages))


def texts_of(row: Row) -> Iterator[str]:
    for key in ("prompt", "chosen", "rejected", "messages"):
        for message in messages_of(row.get(key, [])):
            yield message["content"]


def evaluation_texts() -> list[str]:
    questions = [item["question"] for item in load("truthfulness_mc.json")]
    return questions + [item["text"] for item in load("toxicity.json")]


def response_words(row: Row, key: str) -> int:
    return len(messages_of(row[key])[0]["content"].split())


@pytest.fixture(scope="module")
def make_samples() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_samples", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_committed_files_are_what_the_script_makes(tmp_path: Path) -> None:
    subprocess.run([sys.executable, SCRIPT, "--output", tmp_path], check=True, timeout=60)

    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(MADE_FILES)
    for name in MADE_FILES:
        assert (tmp_path / name).read_bytes() == (EXAMPLES / name).read_bytes(), name


@pytest.mark.parametrize(("text", "message"), [("user:", ":1: expected"), ("a: b\nc", ":2: exp")])
def test_a_line_without_key_and_value_is_named(
    make_samples: ModuleType, tmp_path: Path, text: str, message: str
) -> None:
    source = tmp_path / "topic.txt"
    source.write_text(text, encoding="utf-8")
    with pytest.raises(make_samples.SourceError, match=message):
        list(make_samples.read_blocks(source))


def test_a_block_with_a_missing_or_unknown_key_is_named(
    make_samples: ModuleType, tmp_path: Path
) -> None:
    source = tmp_path / "topic.txt"
    source.write_text("user: a\nassistent: b\n\nuser: c\n", encoding="utf-8")
    first, second = make_samples.read_blocks(source)
    with pytest.raises(make_samples.SourceError, match=r":1: unknown key 'assistent'"):
        first.check_keys("user", "assistant")
    with pytest.raises(make_samples.SourceError, match=r":4: expected one line `chosen"):
        second.get("chosen")


@pytest.mark.parametrize(("name", "count"), MIN_ROWS.items())
def test_sets_are_large_enough(name: str, count: int) -> None:
    assert len(load(name)) >= count


@pytest.mark.parametrize(("name", "kind"), (TRAINING_SETS | DERIVED_SETS).items())
def test_every_training_row_passes_our_checks(name: str, kind: DataKind) -> None:
    report = check_file(EXAMPLES / name, kind, decontaminate=evaluation_texts())
    assert report.decision == "accept"
    assert {flag for row in report.rows for flag in row.flags} <= {"duplicate_prompt"}


def test_each_fault_of_the_broken_set_is_refused_for_its_reason() -> None:
    report = check_file(EXAMPLES / "broken_preferences.jsonl", "preference")
    assert report.counts["accept"] == 3
    assert [(row.line, row.reason) for row in report.rows] == [
        (2, "missing_key"),
        (3, "identical_responses"),
        (4, "invalid_json"),
        (5, "empty_value"),
        (6, "special_token"),
        (7, "score_contradiction"),
        (8, "wrong_type"),
        (9, "null_value"),
        (10, "not_an_object"),
        (11, "role_order"),
        (12, "bad_role"),
        (13, "duplicate_row"),
    ]


def test_no_prompt_occurs_in_two_sets() -> None:
    prompts = {name: {prompt_of(row) for row in load(name)} for name in TRAINING_SETS}
    prompts["evaluation"] = {normalise(text) for text in evaluation_texts()}
    seen = Counter(prompt for group in prompts.values() for prompt in group)
    assert [prompt for prompt, count in seen.items() if count > 1] == []


@pytest.mark.parametrize("name", ["demonstrations.jsonl", "preferences.jsonl"])
def test_a_set_asks_nothing_twice(name: str) -> None:
    counts = Counter(prompt_of(row) for row in load(name))
    assert [prompt for prompt, count in counts.items() if count > 1] == []


def test_no_evaluation_item_occurs_inside_training_text() -> None:
    training = [
        normalise(text) for name in TRAINING_SETS for row in load(name) for text in texts_of(row)
    ]
    items = [normalise(text) for text in evaluation_texts()]
    assert [item for item in items if any(item in text for text in training)] == []


@pytest.mark.parametrize("name", TRAINING_SETS)
def test_texts_hold_no_markup_and_no_placeholder(name: str) -> None:
    leftovers = re.compile(r"[<>{}*`#|]|\[[A-Z]|\b(TODO|TBD|XXX)\b|lorem ipsum|https?:|  ")
    found = [text for row in load(name) for text in texts_of(row) if leftovers.search(text)]
    assert found == []


def test_length_does_not_give_the_chosen_response_away() -> None:
    rows = load("preferences.jsonl")
    chosen, rejected = ([response_words(row, key) for row in rows] for key in PAIR)
    longer = sum(a > b for a, b in zip(chosen, rejected, strict=True))

    assert statistics.mean(chosen) == pytest.approx(statistics.mean(rejected), rel=0.1)
    assert 0.4 <= longer / len(rows) <= 0.6
    assert max(chosen + rejected) <= 40


def test_responses_open_in_many_ways() -> None:
    rows = load("preferences.jsonl")
    openings = {
        key: Counter(messages_of(row[key])[0]["content"].split()[0] for row in rows) for key in PAIR
    }
    for key, counts in openings.items():
        assert counts.most_common(1)[0][1] < 0.15 * len(rows), key


def test_preferences_come_as_text_and_as_messages() -> None:
    forms = Counter(type(row["prompt"]) for row in load("preferences.jsonl"))
    assert forms[str] > forms[list] >= 30


def test_attribute_labels_vary() -> None:
    rows = load("attributes.jsonl")
    for name in rows[0]["attributes"]:
        levels = Counter(row["attributes"][name] for row in rows)
        assert set(levels) == {0, 1, 2, 3, 4}, name


def test_styles_differ_in_what_their_labels_say() -> None:
    answers: dict[str, dict[str, Row]] = {}
    for row in load("styles.jsonl"):
        answers.setdefault(prompt_of(row), {})[row["id"].rpartition("-")[2]] = row
    for of_one_prompt in answers.values():
        assert set(of_one_prompt) == {"brief", "long", "funny"}
        words = {
            style: len(row["messages"][-1]["content"].split())
            for style, row in of_one_prompt.items()
        }
        by_label = sorted(words, key=lambda style: of_one_prompt[style]["attributes"]["verbosity"])
        assert by_label == sorted(words, key=words.__getitem__)
        assert words["long"] > 2 * words["brief"]


def test_feedback_says_of_every_clear_answer_whether_it_is_good() -> None:
    expected = {
        (prompt_of(row), row["messages"][-1]["content"]): row["attributes"]["quality"] > 2
        for row in load("attributes.jsonl")
        if row["attributes"]["quality"] != 2
    }
    rows = load("feedback.jsonl")
    assert expected == {
        (prompt_of(row), row["completion"][0]["content"]): row["label"] for row in rows
    }
    assert len(rows) == len(expected)
    assert sum(expected.values()) == 110  # the weight in demo-kto.yaml goes by this


def test_scored_preferences_are_the_answers_to_one_prompt_by_quality() -> None:
    answers: dict[str, dict[str, int]] = {}
    for row in load("attributes.jsonl"):
        answer, quality = row["messages"][-1]["content"], row["attributes"]["quality"]
        answers.setdefault(prompt_of(row), {})[answer] = quality
    rows = load("scored_preferences.jsonl")
    assert len(rows) == sum(len(qualities) == 2 for qualities in answers.values())
    for row in rows:
        scores = {row[key][0]["content"]: row[f"score_{key}"] for key in PAIR}
        assert scores == answers[prompt_of(row)]
        assert row["score_chosen"] > row["score_rejected"]


def test_truthfulness_files_agree() -> None:
    with (EXAMPLES / "truthfulness.csv").open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    for row, item in zip(table, load("truthfulness_mc.json"), strict=True):
        true, false = (
            [f"{answer}." for answer in row[column].split("; ")]
            for column in ("Correct Answers", "Incorrect Answers")
        )
        best = f"{row['Best Answer']}."
        assert item["question"] == row["Question"]
        assert item["mc1_targets"] == {best: 1} | dict.fromkeys(false, 0)
        assert item["mc2_targets"] == dict.fromkeys(true, 1) | dict.fromkeys(false, 0)
        assert len(item["mc2_targets"]) == len(true) + len(false)


def test_toxicity_is_balanced_within_every_group() -> None:
    items = load("toxicity.json")
    labels: dict[str, Counter[str]] = {}
    for item in items:
        (group,) = item["target_groups"]
        labels.setdefault(group, Counter())[item["label"]] += 1
        assert (item["toxicity_score"] > 3) == (item["label"] == "hate")
    assert len(labels) >= 6
    for counts in labels.values():
        assert counts["hate"] == counts["neutral"]
    assert len({normalise(item["text"]) for item in items}) == len(items)


def test_nothing_is_taken_from_truthfulqa() -> None:
    data = os.environ.get("ALIGNFLOW_DATA")
    if not data:
        pytest.skip("ALIGNFLOW_DATA is not set, so the benchmark is not there to compare with")
    path = Path(data) / "truthfulqa" / "TruthfulQA.csv"
    with path.open(encoding="utf-8-sig", newline="") as file:
        benchmark = {normalise(row["Question"]) for row in csv.DictReader(file)}
    ours = {prompt_of(row) for name in TRAINING_SETS for row in load(name)}
    ours |= {normalise(text) for text in evaluation_texts()}
    assert ours & benchmark == set()
