"""From files to a dataset artifact, with everything real."""

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from part_threads import Threads
from shards import configs_of, make_parts_small, write_shards, written

from alignflow.data_validation.canonical import SCHEMAS, read_split, shards
from alignflow.data_validation.card import Card
from alignflow.data_validation.config import DatasetConfig, RowLimits, SetExpectations
from alignflow.data_validation.drafts import Draft, Turn
from alignflow.data_validation.expectations import judge_set
from alignflow.data_validation.hub import HubRows, hub_commit
from alignflow.data_validation.ingest import Progress, ingest
from alignflow.data_validation.origin import Origin
from alignflow.data_validation.requeue import requeue
from alignflow.data_validation.statistics import SetStatistics
from alignflow.errors import DataError

pytestmark = pytest.mark.integration

NUM_PAIRS = 60


def pairs(start: int = 0, count: int = NUM_PAIRS) -> list[dict[str, Any]]:
    """Return good pairs, three to a prompt."""
    return [
        {
            "prompt": f"What is {number // 3} plus one?",
            "chosen": f"It is {number // 3 + 1}, which is try {number}.",
            "rejected": f"I don't know, and this is try {number}.",
            "score_chosen": 2,
            "score_rejected": 1,
        }
        for number in range(start, start + count)
    ]


def lines(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(orjson.dumps(row) + b"\n" for row in rows)


def write(path: Path, content: bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return str(path)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_folder_of_files_becomes_a_dataset(tmp_path: Path) -> None:
    first, second = pairs(0), pairs(NUM_PAIRS)
    write(tmp_path / "in/a.jsonl.gz", gzip.compress(lines([*first, first[0]]) + b"\n{broken\n"))
    bad = {"prompt": "<script>alert(1)</script>", "chosen": "\x00", "rejected": "B", "id": "<b>"}
    (tmp_path / "in/b.json").write_text(json.dumps([*second, bad]))
    seen: list[Progress] = []

    card = ingest(
        DatasetConfig(sources=[str(tmp_path / "in")], held_out_share=0.25),
        "preference",
        tmp_path / "out",
        benchmark_texts=["What is 3 plus one? Tell me now."],
        on_progress=seen.append,
    )

    train, held_out = (list(read_split(tmp_path / "out", split)) for split in ("train", "held_out"))
    assert card.counts.model_dump() == {
        "read": 123,
        "accepted": 120,
        "refused": 3,
        "skipped": 1,
        "train": 90,
        "held_out": 30,
        "requeued": 0,
    }
    assert card.reasons == {"duplicate_row": 1, "invalid_json": 1, "control_character": 1}
    assert (len(train), len(held_out)) == (90, 30)
    assert not {row["prompt"][0]["content"] for row in train} & {
        row["prompt"][0]["content"] for row in held_out
    }
    assert {row["source"] for row in train} == {"a.jsonl.gz", "b.json"}
    assert len({row["id"] for row in [*train, *held_out]}) == 120
    assert all(
        pq.read_schema(path).equals(SCHEMAS["preference"])
        for split in ("train", "held_out")
        for path in shards(tmp_path / "out", split)
    )
    assert [(Path(item.uri).name, len(item.sha256)) for item in card.sources] == [
        ("a.jsonl.gz", 64),
        ("b.json", 64),
    ]
    assert seen[-1].accepted == 120
    assert Card.load(tmp_path / "out") == card
    assert {item.name: item.severity for item in card.expectations if not item.success} == {
        "few_repeated_prompts": "warning",
        "no_length_bias_shorter": "warning",
    }

    text = (tmp_path / "out/quarantine.jsonl").read_text()
    quarantine = [json.loads(line) for line in text.splitlines()]
    assert [(row["file"], row["line"], row["reason"]) for row in quarantine] == [
        ("a.jsonl.gz", 61, "duplicate_row"),
        ("a.jsonl.gz", 63, "invalid_json"),
        ("b.json", 61, "control_character"),
    ]
    assert quarantine[1]["row"] == "{broken"
    assert [example.reason for example in card.examples] == [row["reason"] for row in quarantine]

    docs = (tmp_path / "out/data_docs/index.html").read_text()
    assert "few_refused" in docs
    assert "<script" not in docs
    assert "http" not in docs.replace("http-equiv", "")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "card.json",
        "data_docs",
        "held_out",
        "quarantine.jsonl",
        "train",
    ]


def test_judged_responses_become_a_dataset_that_is_asked_for_both_labels(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"What is {number} plus one?", "completion": f"{number}", "label": number == 0}
        for number in range(40)
    ]
    source = write(tmp_path / "in/a.jsonl", lines([*rows, {**rows[0], "label": False}]))
    card = ingest(DatasetConfig(sources=[source]), "unpaired", tmp_path / "out")
    assert card.reasons == {"conflicting_label": 1}
    # One desirable response in 40 is below the 5 % that max_label_share leaves.
    failed = {item.name: item.severity for item in card.expectations if not item.success}
    assert failed == {"both_labels": "warning"}
    train, held_out = (list(read_split(tmp_path / "out", split)) for split in ("train", "held_out"))
    (desirable,) = (row for row in [*train, *held_out] if row["label"])
    assert desirable["response"] == "0"
    assert all(
        pq.read_schema(path).equals(SCHEMAS["unpaired"])
        for split in ("train", "held_out")
        for path in shards(tmp_path / "out", split)
    )


def test_equal_sources_give_equal_files(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", lines([*pairs(), {}]))
    for name in ("one", "two"):
        ingest(DatasetConfig(sources=[source]), "preference", tmp_path / name)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_sources_of_any_format_give_the_same_rows(tmp_path: Path) -> None:
    rows = pairs()
    csv = "prompt,chosen,rejected,score_chosen,score_rejected\r\n" + "".join(
        ",".join(f'"{value}"' for value in row.values()) + "\r\n" for row in rows
    )
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    sources = [
        write(tmp_path / "a.jsonl", lines(rows)),
        write(tmp_path / "a.csv", csv.encode()),
        write(tmp_path / "a.json", orjson.dumps(rows)),
        str(tmp_path / "a.parquet"),
    ]
    read = []
    for number, source in enumerate(sources):
        output = tmp_path / str(number)
        ingest(DatasetConfig(sources=[source]), "preference", output)
        split = [list(read_split(output, name)) for name in ("train", "held_out")]
        read.append([[{**row, "source": ""} for row in rows] for rows in split])
    assert all(rows == read[0] for rows in read)


def test_only_as_many_rows_are_taken_as_wanted(tmp_path: Path) -> None:
    sources = [write(tmp_path / f"{n}.jsonl", lines(pairs(n * NUM_PAIRS))) for n in range(3)]
    config = DatasetConfig(sources=sources, max_rows=70, max_held_out_rows=3)
    card = ingest(config, "preference", tmp_path / "out")
    assert card.counts.accepted == 70
    assert card.counts.held_out == 3
    assert [Path(item.uri).name for item in card.sources] == ["0.jsonl", "1.jsonl"]


def refusal(config: DatasetConfig, output: Path) -> DataError:
    with pytest.raises(DataError) as caught:
        ingest(config, "preference", output)
    assert not (output / "card.json").exists()
    return caught.value


@pytest.mark.parametrize("max_rows", [None, 10])
def test_a_broken_archive_stops_the_run_even_if_enough_came_out_of_it(
    tmp_path: Path, max_rows: int | None
) -> None:
    rows = lines(pairs(count=6000))
    source = write(tmp_path / "a.jsonl.gz", gzip.compress(rows)[:-9])
    error = refusal(DatasetConfig(sources=[source], max_rows=max_rows), tmp_path / "out")
    assert error.reason == "truncated_archive"
    assert str(error) == (
        f"{source}: the compressed file ends before its end marker; fetch it again."
    )


def test_a_set_with_too_many_refused_rows_is_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", lines([*pairs(), *[{}] * 15, *[{"prompt": ""}] * 5]))
    error = refusal(DatasetConfig(sources=[source]), tmp_path / "out")
    assert str(error) == (
        "25.0% of the rows are refused, more than max_refused_share (20.0%): 20 of 80 rows refused "
        f"(missing_key 20); each is explained in {tmp_path / 'out/quarantine.jsonl'}."
    )
    assert (tmp_path / "out/data_docs/index.html").exists()


def test_a_set_with_too_few_rows_is_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", lines(pairs()))
    config = DatasetConfig(sources=[source], expectations=SetExpectations(min_rows=61))
    assert "60 rows are accepted, fewer than min_rows (61)" in str(
        refusal(config, tmp_path / "out")
    )


def test_a_set_without_a_good_row_is_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", lines([{}] * 3))
    assert "no row is accepted: 3 of 3 rows refused (missing_key 3)" in str(
        refusal(DatasetConfig(sources=[source]), tmp_path / "out")
    )


def test_a_set_is_read_by_the_hubs_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    write(tmp_path / "set/train.jsonl", lines(pairs()))
    write(tmp_path / "set/test.jsonl", lines(pairs(NUM_PAIRS)))
    rows = HubRows(str(tmp_path / "set"), "preference")
    assert [row.values for row in rows.read()] == pairs()
    assert (len(rows.sha256), rows.num_bytes) == (64, len(lines(pairs())))


def test_a_set_of_the_hub_without_a_training_split_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "set/validation.jsonl", lines(pairs()))
    write(tmp_path / "set/test.jsonl", lines(pairs(NUM_PAIRS)))
    with pytest.raises(DataError, match=r"none of its splits \(.*test.*\) is for training"):
        list(HubRows(str(tmp_path / "set"), "preference").read())


def test_the_split_of_the_kind_goes_before_the_common_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    for number, split in enumerate(("train", "train_prefs")):
        rows = pa.Table.from_pylist(pairs(number * NUM_PAIRS))
        (tmp_path / "set/data").mkdir(parents=True, exist_ok=True)
        pq.write_table(rows, tmp_path / f"set/data/{split}-00000-of-00001.parquet")
    read = {
        kind: [row.values for row in HubRows(str(tmp_path / "set"), kind).read()]
        for kind in ("sft", "preference")
    }
    assert read == {"sft": pairs(), "preference": pairs(NUM_PAIRS)}


def test_a_misspelt_path_that_could_be_a_hub_id_says_both(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DataError, match="data/pears: there is no such file here, and the hub can"):
        hub_commit("data/pears")


def test_what_an_id_holds_stays_text_on_the_page(tmp_path: Path) -> None:
    draft = Draft(None, {"messages": [Turn("user", "Q"), Turn("assistant", "A")]})
    numbers = SetStatistics()
    for _ in range(2):
        numbers.add_accepted(draft, "<img src=x onerror=alert(1)>", ["duplicate_prompt"])
    results = judge_set(numbers, "sft", SetExpectations(), tmp_path, title="<i>set</i>")
    failed = {item.name: item.severity for item in results if not item.success}
    assert failed == {
        "few_repeated_prompts": "warning",
        "ids_unique": "warning",
        "response_length": "warning",
    }
    page = (tmp_path / "index.html").read_text()
    assert "<img" not in page
    assert "<i>set" not in page
    assert "default-src 'none'" in page


def test_masked_text_is_what_is_trained_on(tmp_path: Path) -> None:
    row = {"prompt": "Who?", "response": "ann@example.org"}
    source = write(tmp_path / "in/a.jsonl", lines([row]))
    limits = RowLimits(pii="mask")
    card = ingest(DatasetConfig(sources=[source], limits=limits), "sft", tmp_path / "out")
    (stored,) = read_split(tmp_path / "out", "train")
    assert stored["messages"][1]["content"] == "[pii]"
    assert card.flags == {"pii_masked": 1}
    assert b"example.org" not in b"".join(contents(tmp_path / "out").values())


def varied(count: int) -> list[dict[str, Any]]:
    """Return good demonstrations that have hardly a word in common."""
    return [
        {
            "prompt": f"question {number} about topic-{number}?",
            "response": " ".join(f"word{number}x{at}" for at in range(40)),
        }
        for number in range(count)
    ]


def test_rows_of_a_tree_stay_on_one_side(tmp_path: Path) -> None:
    rows = [{**row, "tree": f"tree-{number % 5}"} for number, row in enumerate(varied(40))]
    source = write(tmp_path / "in/a.jsonl", lines(rows))
    ingest(DatasetConfig(sources=[source], held_out_share=0.2), "sft", tmp_path / "out")
    trees = {
        split: {(row["line"] - 1) % 5 for row in read_split(tmp_path / "out", split)}
        for split in ("train", "held_out")
    }
    assert len(trees["held_out"]) == 1
    assert len(trees["train"]) == 4


@pytest.mark.parametrize("action", ["flag", "refuse"])
def test_near_duplicates_are_flagged_or_refused(tmp_path: Path, action: str) -> None:
    rows = varied(40)
    # One word of some 44 is another: 3 of 44 triples are.
    near = [{**row, "response": row["response"].replace("x7 ", "y ")} for row in rows[:10]]
    source = write(tmp_path / "in/a.jsonl", lines([*rows, *near]))
    config = DatasetConfig.model_validate(
        {"sources": [source], "held_out_share": 0.2, "near_duplicates": {"action": action}}
    )
    card = ingest(config, "sft", tmp_path / "out")
    stored = {
        row["line"]: split
        for split in ("train", "held_out")
        for row in read_split(tmp_path / "out", split)
    }
    quarantine = [
        json.loads(line) for line in (tmp_path / "out/quarantine.jsonl").read_text().splitlines()
    ]
    if action == "flag":
        assert (card.counts.accepted, card.flags) == (
            50,
            {"duplicate_prompt": 10, "near_duplicate": 10},
        )
        assert all(stored[line] == stored[line + 40] for line in range(1, 11))
        assert not quarantine
    else:
        assert (card.counts.accepted, card.counts.refused) == (40, 10)
        assert (card.reasons, card.flags) == ({"near_duplicate": 10}, {})
        assert sorted(stored) == list(range(1, 41))
        assert [row["line"] for row in quarantine] == list(range(41, 51))
        assert quarantine[0]["row"]["messages"][1]["content"] == near[0]["response"]
        assert card.counts.train + card.counts.held_out == 40


def test_the_recipe_decides_what_ends_the_run(tmp_path: Path) -> None:
    rows = pairs()
    source = write(tmp_path / "a.jsonl", lines([*rows, *rows[:30]]))
    config = {"sources": [source], "expectations": {"max_refused_share": 0.5}}
    card = ingest(DatasetConfig.model_validate(config), "preference", tmp_path / "out")
    outcomes = {item.name: item for item in card.expectations}
    # 30 of 90 rows stand earlier.
    assert outcomes["few_duplicates"].observed == pytest.approx(1 / 3)
    assert (outcomes["few_duplicates"].success, outcomes["few_duplicates"].severity) == (
        False,
        "warning",
    )
    strict = {"max_refused_share": 0.5, "severities": {"few_duplicates": "critical"}}
    error = refusal(
        DatasetConfig.model_validate({**config, "expectations": strict}), tmp_path / "strict"
    )
    assert "the set fails few_duplicates" in str(error)


def test_ratings_are_counted_on_the_card(tmp_path: Path) -> None:
    rows = [
        {"messages": row["chosen"], "attributes": {"quality": number % 3, "humor": 2}}
        for number, row in enumerate(
            {
                "chosen": [
                    {"role": "user", "content": f"Question {number}?"},
                    {"role": "assistant", "content": f"Answer {number}."},
                ]
            }
            for number in range(9)
        )
    ]
    source = write(tmp_path / "a.jsonl", lines(rows))
    card = ingest(DatasetConfig(sources=[source], licence="MIT"), "steerlm", tmp_path / "out")
    assert card.ratings == {"humor": [0, 0, 9, 0, 0], "quality": [3, 3, 3, 0, 0]}
    failed = [item.name for item in card.expectations if not item.success]
    assert failed == ["ratings_vary"]
    assert card.config.licence == "MIT"
    assert card.scripts == {"Latin": 9}


def test_a_repaired_row_is_a_source_that_says_where_it_was_refused(tmp_path: Path) -> None:
    good = varied(20)
    source = write(tmp_path / "in/a.jsonl", lines([*good, {"prompt": "Who?", "response": " "}]))
    ingest(DatasetConfig(sources=[source]), "sft", tmp_path / "first")
    quarantine = tmp_path / "mended.jsonl"
    refused = (tmp_path / "first/quarantine.jsonl").read_text()
    quarantine.write_text(refused.replace('"response":" "', '"response":"Nobody."'))
    assert requeue(quarantine, "sft", tmp_path / "repaired.jsonl").num_added == 1

    sources = [source, str(tmp_path / "repaired.jsonl")]
    card = ingest(DatasetConfig(sources=sources), "sft", tmp_path / "second")
    assert (card.counts.accepted, card.counts.requeued) == (21, 1)
    assert card.requeued == [Origin(file="a.jsonl", line=21, reason="empty_value")]
    rows = [
        row for split in ("train", "held_out") for row in read_split(tmp_path / "second", split)
    ]
    (mended,) = (row for row in rows if row["messages"][1]["content"] == "Nobody.")
    assert (mended["source"], mended["line"]) == ("a.jsonl", 21)


def test_parts_judged_elsewhere_make_the_same_sets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_parts_small(monkeypatch, block_rows=10, part_blocks=2)
    write_shards(tmp_path / "in", num_rows=90)
    configs = configs_of(tmp_path / "in", max_rows=50)
    here = written(configs, tmp_path / "out")
    assert [bool(each["error"]) for each in here] == [False, False, False, True, True]
    shutil.rmtree(tmp_path / "out")

    threads = Threads(parts_ahead=7)
    assert written(configs, tmp_path / "out", threads) == here
    # Of the three configs that read all rows alone, 90 in each of six files.
    assert threads.num_parts > 3 * 6 * 3
