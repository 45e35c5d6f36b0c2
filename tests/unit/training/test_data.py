import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from alignflow.data_validation.canonical import ATTRIBUTES, SCHEMAS, Split
from alignflow.errors import ConfigError, DataError
from alignflow.training.data import (
    DEMONSTRATIONS,
    JUDGED_PREFERENCES,
    JUDGED_RESPONSES,
    PREFERENCES,
    PROMPTS,
    RATED,
    SCORED_PREFERENCES,
    RecordKind,
    load_rows,
)
from alignflow.training.rollout import Prompts
from alignflow.training.rows import TokenRows

Record = dict[str, Any]


def demonstration(name: str, *contents: str) -> Record:
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]
    return {"id": name, "messages": messages}


def pair(name: str, chosen: str, rejected: str, *prompt: str) -> Record:
    messages = demonstration(name, *(prompt or ("Red?",)))["messages"]
    return {"id": name, "prompt": messages, "chosen": chosen, "rejected": rejected}


def write_dataset(
    folder: Path, kind: str, train: Sequence[Record], held_out: Sequence[Record] = ()
) -> Path:
    """A dataset artifact whose training split has two rows a shard."""
    folder.mkdir()
    (folder / "card.json").write_text("{}")
    for split, records in (("train", train), ("held_out", held_out)):
        (folder / split).mkdir()
        for start in range(0, len(records), 2):
            shard = pa.Table.from_pylist(records[start : start + 2], schema=SCHEMAS[kind])
            pq.write_table(shard, folder / split / f"part-{start // 2:05d}.parquet")
    return folder


def load(
    dataset: Path,
    kind: RecordKind,
    model: Path,
    *,
    split: Split = "train",
    max_length: int = 200,
    is_writer: bool = True,
) -> TokenRows:
    return load_rows(
        dataset,
        split,
        kind,
        model=model,
        max_length=max_length,
        cache=dataset.parent / "tokens",
        is_writer=is_writer,
    )


def texts(rows: TokenRows, model: Path) -> list[tuple[str, str]]:
    """Each row as text, and what of it is learnt."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    decoded = []
    for index in range(rows.num_rows):
        row = rows.row(index)
        learnt_T = row.tokens_T[row.is_learnt_T]
        decoded.append((tokenizer.decode(row.tokens_T), tokenizer.decode(learnt_T)))
    return decoded


def test_demonstrations_of_all_shards_come_in_order(tmp_path: Path, chatml_model: Path) -> None:
    records = [demonstration(f"row-{i}", f"number {i}?", f"it is {i}") for i in range(5)]
    rows = load(write_dataset(tmp_path / "set", "sft", records), DEMONSTRATIONS, chatml_model)
    assert len(rows) == rows.num_rows == 5
    assert texts(rows, chatml_model)[3] == (
        "<|im_start|>user\nnumber 3?<|im_end|>\n<|im_start|>assistant\nit is 3<|im_end|>\n",
        "it is 3<|im_end|>",
    )
    assert rows.item_lengths.tolist() == [len(rows.row(i).tokens_T) for i in range(5)]


def test_the_rows_of_a_pair_stand_together_and_learn_the_answer_only(
    tmp_path: Path, chatml_model: Path
) -> None:
    records = [pair("one", "good", "bad", "Red?", "earlier answer", "Blue?"), pair("two", "a", "b")]
    rows = load(write_dataset(tmp_path / "set", "preference", records), PREFERENCES, chatml_model)
    assert (len(rows), rows.num_rows) == (2, 4)
    learnt = [learnt for _, learnt in texts(rows, chatml_model)]
    assert learnt == ["good<|im_end|>", "bad<|im_end|>", "a<|im_end|>", "b<|im_end|>"]
    assert rows.rows_of(np.array([1, 0])).tolist() == [2, 3, 0, 1]
    assert rows.item_lengths.sum() == len(rows.tokens)


def test_ratings_are_the_labels_of_the_last_answer(tmp_path: Path, chatml_model: Path) -> None:
    record = {
        **demonstration("one", "Red?", "no", "Red?", "yes"),
        "attributes": {"quality": 4, "verbosity": 0},
    }
    rows = load(write_dataset(tmp_path / "set", "steerlm", [record]), RATED, chatml_model)
    (labels,) = rows.labels_IL
    known = {name: value for name, value in zip(ATTRIBUTES, labels, strict=True) if value == value}
    assert known == {"quality": 4, "verbosity": 0}
    assert texts(rows, chatml_model)[0][1] == "yes<|im_end|>"


def test_scored_pairs_are_labelled_with_the_gap_and_others_refused(
    tmp_path: Path, chatml_model: Path
) -> None:
    records = [
        pair("scored", "good", "bad") | {"score_chosen": 4.0, "score_rejected": 1.5},
        pair("half", "good", "bad") | {"score_chosen": 4.0},
        pair("tie", "a", "b") | {"score_chosen": 2.0, "score_rejected": 2.0},
    ]
    dataset = write_dataset(tmp_path / "set", "preference", records)
    rows = load(dataset, SCORED_PREFERENCES, chatml_model)
    assert rows.labels_IL.tolist() == [[2.5], [0.0]]
    assert rows.summary.refused == ({"id": "half", "reason": "no_scores"},)


def test_judged_responses_are_labelled_with_their_judgement(
    tmp_path: Path, chatml_model: Path
) -> None:
    records = [
        {"id": name, "prompt": demonstration(name, "Red?")["messages"]}
        | {"response": name, "label": label}
        for name, label in (("good", True), ("bad", False))
    ]
    dataset = write_dataset(tmp_path / "set", "unpaired", records)
    rows = load(dataset, JUDGED_RESPONSES, chatml_model)
    assert (len(rows), rows.num_rows) == (2, 2)
    assert rows.labels_IL.tolist() == [[1.0], [0.0]]
    assert [learnt for _, learnt in texts(rows, chatml_model)] == [
        "good<|im_end|>",
        "bad<|im_end|>",
    ]


def test_a_pair_taken_apart_is_a_desirable_and_an_undesirable_response(
    tmp_path: Path, chatml_model: Path
) -> None:
    records = [pair("one", "good", "bad"), pair("same", "a", "a"), pair("two", "a", "b " * 50)]
    dataset = write_dataset(tmp_path / "set", "preference", records)
    rows = load(dataset, JUDGED_PREFERENCES, chatml_model, max_length=60)
    assert (len(rows), rows.num_rows) == (4, 4)
    assert rows.labels_IL.tolist() == [[1.0], [0.0], [1.0], [0.0]]
    learnt = [learnt for _, learnt in texts(rows, chatml_model)]
    assert learnt[:3] == ["good<|im_end|>", "bad<|im_end|>", "a<|im_end|>"]
    assert rows.summary.num_truncated == 1
    assert rows.summary.reasons == {"pair_equal_after_cut": 1}
    # The same records are other rows where they are compared.
    assert len(load(dataset, PREFERENCES, chatml_model, max_length=60)) == 2


def test_long_rows_are_cut_at_the_end_and_counted(tmp_path: Path, chatml_model: Path) -> None:
    records = [demonstration("short", "Red?", "yes"), demonstration("long", "Red?", "yes " * 50)]
    dataset = write_dataset(tmp_path / "set", "sft", records)
    rows = load(dataset, DEMONSTRATIONS, chatml_model, max_length=60)
    assert rows.summary.num_truncated == 1
    assert rows.item_lengths[1] == 60
    assert rows.row(1).is_learnt_T[-1]


def test_rows_that_cannot_be_learnt_from_are_refused_by_name(
    tmp_path: Path, chatml_model: Path
) -> None:
    records = [
        pair("good", "yes", "no"),
        pair("long prompt", "yes", "no", "word " * 100),
        pair("same start", "yes " * 100 + "a", "yes " * 100 + "b"),
        pair("merged seam", "\nyes", "no"),
        pair("no words", "yes", " "),
    ]
    dataset = write_dataset(tmp_path / "set", "preference", records)
    rows = load(dataset, PREFERENCES, chatml_model, max_length=60)
    assert len(rows) == 1
    assert sorted((refused["id"], refused["reason"]) for refused in rows.summary.refused) == [
        ("long prompt", "response_cut_away"),
        ("merged seam", "prompt_not_apart"),
        ("no words", "empty_response"),
        ("same start", "pair_equal_after_cut"),
    ]
    assert sum(rows.summary.reasons.values()) == 4
    assert rows.summary.num_truncated == 0  # of the rows that are left


def test_a_set_without_a_row_to_learn_from_says_why(tmp_path: Path, chatml_model: Path) -> None:
    records = [demonstration(f"row-{i}", "word " * 50, "yes") for i in range(3)]
    dataset = write_dataset(tmp_path / "set", "sft", records)
    with pytest.raises(DataError, match=r"no training row is left .* 3 for response_cut_away"):
        load(dataset, DEMONSTRATIONS, chatml_model, max_length=20)


def test_an_empty_held_out_split_is_no_error(tmp_path: Path, chatml_model: Path) -> None:
    dataset = write_dataset(tmp_path / "set", "sft", [demonstration("one", "Red?", "yes")])
    rows = load(dataset, DEMONSTRATIONS, chatml_model, split="held_out")
    assert (len(rows), rows.num_rows, len(rows.tokens)) == (0, 0, 0)


def test_a_set_of_another_kind_is_refused(tmp_path: Path, chatml_model: Path) -> None:
    dataset = write_dataset(tmp_path / "set", "sft", [demonstration("one", "Red?", "yes")])
    with pytest.raises(DataError, match="no preference dataset, it has no column 'prompt'"):
        load(dataset, PREFERENCES, chatml_model)


def test_rows_longer_than_the_models_positions_are_refused(
    tmp_path: Path, chatml_model: Path
) -> None:
    dataset = write_dataset(tmp_path / "set", "sft", [demonstration("one", "Red?", "yes")])
    with pytest.raises(ConfigError, match="max_length: 2049 is more than the 2048 positions"):
        load(dataset, DEMONSTRATIONS, chatml_model, max_length=2049)


class TestCache:
    def test_other_ranks_and_later_attempts_map_what_was_tokenised(
        self, tmp_path: Path, chatml_model: Path
    ) -> None:
        dataset = write_dataset(tmp_path / "set", "sft", [demonstration("one", "Red?", "yes")])
        written = load(dataset, DEMONSTRATIONS, chatml_model)
        before = (tmp_path / "tokens/train/tokens.bin").stat().st_mtime_ns
        again = load(dataset, DEMONSTRATIONS, chatml_model, is_writer=False)
        np.testing.assert_array_equal(written.tokens, again.tokens)
        load(dataset, DEMONSTRATIONS, chatml_model)
        assert (tmp_path / "tokens/train/tokens.bin").stat().st_mtime_ns == before

    @pytest.mark.parametrize("change", ["data", "template", "length"])
    def test_what_determines_the_tokens_makes_them_anew(
        self, tmp_path: Path, chatml_model: Path, change: str
    ) -> None:
        dataset = write_dataset(tmp_path / "set", "sft", [demonstration("one", "Red?", "yes")])
        model = tmp_path / "model"
        model.mkdir()
        for file in chatml_model.iterdir():
            (model / file.name).write_bytes(file.read_bytes())
        before = load(dataset, DEMONSTRATIONS, model)
        if change == "data":
            shard = next((dataset / "train").iterdir())
            changed = [demonstration("one", "Red?", "no")]
            pq.write_table(pa.Table.from_pylist(changed, schema=SCHEMAS["sft"]), shard)
        elif change == "template":
            template = model / "chat_template.jinja"
            template.write_text(template.read_text().replace("\n{% endfor", "\n\n{% endfor"))
        after = load(dataset, DEMONSTRATIONS, model, max_length=199 if change == "length" else 200)
        assert after.summary.digest != before.summary.digest
        is_same = np.array_equal(after.tokens, before.tokens)
        assert is_same == (change == "length")

    def test_rows_that_were_not_finished_do_not_count(
        self, tmp_path: Path, chatml_model: Path
    ) -> None:
        dataset = write_dataset(tmp_path / "set", "sft", [demonstration("one", "Red?", "yes")])
        rows = load(dataset, DEMONSTRATIONS, chatml_model)
        summary = tmp_path / "tokens/train/rows.json"
        digest = json.loads(summary.read_text())["digest"]
        assert digest == rows.summary.digest
        summary.unlink()
        assert TokenRows.open(summary.parent, digest=digest, rows_per_item=1) is None


def test_a_prompt_is_what_its_answers_follow(tmp_path: Path, chatml_model: Path) -> None:
    records = [
        pair("one", "Yes.", "No.", "Red?"),
        pair("two", "Yes.", "No.", "Red?", "Or blue.", "Which?"),
    ]
    dataset = write_dataset(tmp_path / "set", "preference", records)
    prompts = load(dataset, PROMPTS, chatml_model)
    pairs = load_rows(
        dataset,
        "train",
        PREFERENCES,
        model=chatml_model,
        max_length=200,
        cache=tmp_path / "pairs",
        is_writer=True,
    )
    assert len(prompts) == 2
    assert not prompts.is_learnt.any()
    for item in range(2):
        answered, prompt = pairs.row(2 * item), prompts.row(item).tokens_T
        assert answered.is_learnt_T.argmax() == len(prompt)
        assert np.array_equal(answered.tokens_T[: len(prompt)], prompt)


def test_a_prompt_that_is_too_long_is_refused_and_not_cut(
    tmp_path: Path, chatml_model: Path
) -> None:
    records = [pair("short", "Yes.", "No."), pair("long", "Yes.", "No.", "Red? " * 40)]
    dataset = write_dataset(tmp_path / "set", "preference", records)
    prompts = load(dataset, PROMPTS, chatml_model, max_length=60)
    assert len(prompts) == 1
    assert prompts.summary.refused == ({"id": "long", "reason": "prompt_too_long"},)
    assert prompts.summary.num_truncated == 0


def test_prompts_that_come_again_are_left_out(tmp_path: Path, chatml_model: Path) -> None:
    questions = ["Red?", "Blue?", "Red?", "Red? ", "Blue?", "Green?"]
    records = [pair(f"{n}", "Yes.", "No.", text) for n, text in enumerate(questions)]
    dataset = write_dataset(tmp_path / "set", "preference", records)
    distinct = Prompts.distinct(load(dataset, PROMPTS, chatml_model))
    assert distinct.items.tolist() == [0, 1, 3, 5]
