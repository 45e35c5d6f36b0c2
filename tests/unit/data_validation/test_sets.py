"""Sets: the split, the shards, the statistics and the card."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from alignflow.data_validation import shards, statistics
from alignflow.data_validation.canonical import column_names, num_rows, read_split, read_tables
from alignflow.data_validation.card import Card
from alignflow.data_validation.config import DataKind
from alignflow.data_validation.drafts import Draft, Turn
from alignflow.data_validation.forms import draft_row
from alignflow.data_validation.hub import is_hub_set
from alignflow.data_validation.shards import StagedRows, as_row, canonical_record
from alignflow.data_validation.splitting import GroupLinks, group_of, held_out_groups
from alignflow.data_validation.statistics import SetStatistics, script_of
from alignflow.data_validation.text import hash_of
from alignflow.errors import DataError


def draft(number: int, *, reply: str = "A") -> Draft:
    turns = [Turn("user", f"Question {number}"), Turn("assistant", reply)]
    return Draft(None, {"messages": turns})


def branch(*texts: str) -> Draft:
    roles = ("user", "assistant")
    turns = [Turn(roles[at % 2], text) for at, text in enumerate(texts)]
    return Draft(None, {"messages": [Turn("system", "S"), *turns]})


def test_branches_of_a_conversation_stay_together() -> None:
    group = group_of(branch("Hello, you!", "A"), seed=1)
    assert group_of(branch("hello you", "A", "more?", "B"), seed=1) == group
    assert group_of(branch("Hello, you two!", "A"), seed=1) != group
    assert group_of(branch("Hello, you!", "A"), seed=2) != group


def test_whole_groups_are_held_out_up_to_the_share() -> None:
    # 40 rows in 20 groups of two; a share of 0.25 is 10 rows, so 5 groups.
    groups = [row // 2 for row in range(40)]
    held_out = held_out_groups(groups, 0.25, None)
    assert len(held_out) == 5
    assert held_out_groups(groups[::-1], 0.25, None) == held_out


@pytest.mark.parametrize(
    ("groups", "share", "max_rows", "num_groups"),
    [
        (list(range(10)), 0.0, None, 0),
        (list(range(10)), 0.01, None, 1),  # rounds to none: one all the same
        (list(range(10)), 0.5, 2, 2),
        ([7] * 10, 0.5, None, 0),  # a single group can't be split
        ([7] * 9 + [8], 0.5, None, 1),
        ([7, 7, 7, 8, 8], 0.01, 1, 1),  # larger than the share, but there must be something
        ([], 0.5, None, 0),
    ],
)
def test_something_is_held_out_wherever_it_can_be(
    groups: list[int], share: float, max_rows: int | None, num_groups: int
) -> None:
    assert len(held_out_groups(groups, share, max_rows)) == num_groups


def test_shards_hold_every_row_once_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "ROWS_PER_SHARD", 10)
    monkeypatch.setattr(shards, "_BATCH_ROWS", 4)
    drafts = [draft(number) for number in range(50)]
    with StagedRows(tmp_path / "staged.parquet", "sft") as staged:
        for start in range(0, 50, 7):
            part = range(start, min(start + 7, 50))
            staged.add(
                [canonical_record(drafts[row], str(row), "a.jsonl", row + 1) for row in part],
                [group_of(drafts[row], 0) for row in part],
            )
        assert staged.split(tmp_path, 0.2, None) == {"train": 40, "held_out": 10}
    (tmp_path / "card.json").write_text("{}")
    train, held_out = (list(read_split(tmp_path, split)) for split in ("train", "held_out"))
    assert len(list((tmp_path / "train").glob("part-*.parquet"))) > 1
    assert [row["line"] for row in train] == sorted(row["line"] for row in train)
    assert sorted(int(row["id"]) for row in [*train, *held_out]) == list(range(50))
    assert (num_rows(tmp_path, "train"), num_rows(tmp_path, "held_out")) == (40, 10)
    assert held_out[0]["messages"][1] == {"role": "assistant", "content": "A"}


def test_records_have_the_columns_of_their_kind(tmp_path: Path) -> None:
    turns = [Turn("user", "Q"), Turn("assistant", "A")]
    pair = Draft(
        None,
        {"prompt": turns[:1], "chosen": turns[1:], "rejected": [Turn("assistant", "B")]},
        scores=(2.0, None),
    )
    assert canonical_record(pair, "7", "a.jsonl", 3) == {
        "id": "7",
        "prompt": [{"role": "user", "content": "Q"}],
        "chosen": "A",
        "rejected": "B",
        "score_chosen": 2.0,
        "score_rejected": None,
        "source": "a.jsonl",
        "line": 3,
    }
    judged = Draft(None, {"prompt": turns[:1], "response": turns[1:]}, label=False)
    assert canonical_record(judged, "7", "a.jsonl", 3) == {
        "id": "7",
        "prompt": [{"role": "user", "content": "Q"}],
        "response": "A",
        "label": False,
        "source": "a.jsonl",
        "line": 3,
    }
    rated = Draft(None, {"messages": turns}, attributes={"quality": 3.0})
    with StagedRows(tmp_path / "staged.parquet", "steerlm") as staged:
        staged.add([canonical_record(rated, "7", "a.jsonl", 3)], [0])
        staged.split(tmp_path, 0, None)
    (tmp_path / "card.json").write_text("{}")
    (row,) = read_split(tmp_path, "train")
    assert row["attributes"]["quality"] == 3
    assert row["attributes"]["toxicity"] is None
    assert column_names(tmp_path) == {"id", "messages", "attributes", "source", "line"}


@pytest.mark.parametrize("kind", ["sft", "preference", "unpaired", "steerlm"])
def test_a_record_is_a_row_that_can_be_read_again(kind: DataKind) -> None:
    question, answer = Turn("user", "Q"), Turn("assistant", "A")
    drafts: dict[DataKind, Draft] = {
        "sft": Draft("7", {"messages": [question, answer]}),
        "preference": Draft(
            "7",
            {"prompt": [question], "chosen": [answer], "rejected": [Turn("assistant", "B")]},
            scores=(2.0, None),
        ),
        "unpaired": Draft("7", {"prompt": [question], "response": [answer]}, label=False),
        "steerlm": Draft("7", {"messages": [question, answer]}, attributes={"quality": 3.0}),
    }
    record = canonical_record(drafts[kind], "7", "a.jsonl", 3)
    assert draft_row(as_row(record), kind) == drafts[kind]


def test_a_folder_without_a_card_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a dataset"):
        list(read_tables(tmp_path, "train"))
    with pytest.raises(DataError, match="not a dataset"):
        Card.load(tmp_path)


def test_a_broken_shard_is_named(tmp_path: Path) -> None:
    (tmp_path / "card.json").write_text("{}")
    (tmp_path / "train").mkdir()
    (tmp_path / "train/part-00000.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"part-00000\.parquet: can't be read"):
        list(read_tables(tmp_path, "train"))
    with pytest.raises(DataError, match=r"part-00000\.parquet: can't be read"):
        num_rows(tmp_path, "train")


def test_a_sample_stays_bounded_and_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "_MAX_SAMPLED_ROWS", 100)
    numbers = SetStatistics()
    for number in range(1000):
        numbers.add_accepted(draft(number), str(number), ["html"] if number < 10 else [])
    ids = {f"{hash_of(str(number)):016x}": number for number in range(1000)}
    sampled = [ids[row["id"]] for row in numbers.sample]
    steps = {after - before for before, after in pairwise(sampled)}
    assert 50 <= len(sampled) <= 100
    assert len(steps) == 1
    assert numbers.flag_share("html") == 0.01


def test_rows_that_are_dropped_are_refused_with_their_flags() -> None:
    numbers = SetStatistics()
    for number in range(6):
        numbers.add_accepted(draft(number), str(number), ["html"] if number in (1, 2) else [])
    numbers.drop(np.array([False, True, False, False, False, True]), "near_duplicate")
    assert numbers.counts == {"accept": 4, "reject": 2}
    assert (numbers.reasons, numbers.flags) == ({"near_duplicate": 2}, {"html": 1})
    kept = [f"{hash_of(str(number)):016x}" for number in (0, 2, 3, 4)]
    assert [row["id"] for row in numbers.sample] == kept


def test_groups_that_are_linked_stand_for_one_another() -> None:
    links = GroupLinks()
    links.join(1, 2)
    links.join(3, 4)
    assert links.root(1) == links.root(2) != links.root(3)
    links.join(4, 2)
    assert len({links.root(group) for group in (1, 2, 3, 4)}) == 1
    assert links.root(5) == 5


def test_shares_of_nothing_are_zero() -> None:
    assert SetStatistics().refused_share == 0
    assert SetStatistics().flag_share("html") == 0


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("hf://datasets/owner/name", True),
        ("hf://datasets/owner/name@main", True),
        ("hf://datasets/owner/name/a.jsonl", False),
        ("owner/name", True),
        ("owner/name/a.jsonl", False),
        ("/owner/name", False),
        ("./owner/name", False),
        ("s3://owner/name", False),
        ("tests/unit", False),  # a folder that is there
    ],
)
def test_a_set_of_the_hub_is_told_from_a_path(
    source: str, expected: bool, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(request.config.rootpath)
    assert is_hub_set(source) is expected


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("plain words", "Latin"),
        ("caf\u00e9", "Latin"),
        ("\u043f\u0440\u0438\u0432\u0435\u0442 ok", "Cyrillic"),
        ("\u4f60\u597d", "Cjk"),
        ("12 + 30 = 42", "none"),
        ("\u2260 \u2264", "none"),
    ],
)
def test_a_text_is_of_the_script_of_most_letters(text: str, script: str) -> None:
    assert script_of(text) == script


def test_shares_of_scripts_and_ratings_are_of_the_rows_that_have_them() -> None:
    numbers = SetStatistics()
    for reply, quality in (("one", 3), ("two", 3), ("\u0434\u0430", 1), ("42", 3)):
        rated = draft(0, reply=reply)
        rated.attributes = {"quality": float(quality), "humor": None}
        numbers.add_accepted(rated, reply, [])
    assert numbers.scripts == {"Latin": 2, "Cyrillic": 1}
    assert numbers.main_script_share == 2 / 3
    assert numbers.ratings == {"quality": {3: 3, 1: 1}}
    assert numbers.largest_rating_share == 0.75
    numbers.remove_ratings({"quality": 1, "humor": None})
    assert numbers.largest_rating_share == 1
    # Replies of 2 and 3 characters both have two binary digits, questions of 10 have four.
    assert numbers.lengths["response_chars"] == [0, 0, 4]
    assert numbers.lengths["prompt_chars"] == [0, 0, 0, 0, 4]
