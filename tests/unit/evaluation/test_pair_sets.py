"""Sets of pairs for reward models, as they come."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from alignflow.errors import DataError
from alignflow.evaluation.config import EvaluationConfig, EvaluationJob
from alignflow.evaluation.pair_sets import read_pair_set


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def test_prompts_are_texts_transcripts_or_messages(tmp_path: Path) -> None:
    answers = {"chosen": "yes", "rejected": "no"}
    later = "So?\n\nAssistant: Well.\n\nHuman: And then?"
    messages = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "So?"}]
    prompts = ["So?", later, f"\n\nHuman: {later}\n\nAssistant:", messages]
    path = write(tmp_path / "pairs.jsonl", *({"prompt": p, **answers} for p in prompts))
    turns = [("user", "So?"), ("assistant", "Well."), ("user", "And then?")]
    read = [
        [(message["role"], message["content"]) for message in record["prompt"]]
        for record in read_pair_set(path, None)
    ]
    assert read == [turns[:1], turns, turns, [("system", "be kind"), ("user", "So?")]]
    assert len(read_pair_set(path, 2)) == 2


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"chosen": "a", "rejected": "b"}, "field 'prompt' is missing"),
        ({"prompt": [1], "chosen": "a", "rejected": "b"}, "field 'prompt' must be a text or a"),
        ({"prompt": "a", "chosen": "", "rejected": "b"}, "field 'chosen' must hold text"),
    ],
)
def test_malformed_pair_is_named(tmp_path: Path, row: dict[str, Any], problem: str) -> None:
    path = write(tmp_path / "pairs.jsonl", row)
    with pytest.raises(DataError, match=f"item 1: {problem}"):
        read_pair_set(path, None)


def test_set_of_pairs_has_a_name_of_its_own_and_a_judge() -> None:
    pairs = {"data": "x.jsonl"}
    with pytest.raises(ValidationError, match=r"pair_sets\.kl: this name is taken by a built-in"):
        EvaluationConfig.model_validate({"pair_sets": {"kl": pairs}})
    suite = {"suite": "toxigen", "data": "x.json"}
    with pytest.raises(ValidationError, match=r"pair_sets\.hhh: this name is taken by a suite"):
        EvaluationConfig.model_validate({"pair_sets": {"hhh": pairs}, "suites": {"hhh": suite}})
    config = EvaluationConfig.model_validate({"pair_sets": {"hhh": pairs}})
    assert "hhh/reward_accuracy" in config.score_names
    with pytest.raises(ValidationError, match="pair_sets are for a reward model"):
        EvaluationJob(evaluation=config, model=Path("model"))


def test_real_hhh_is_read_whole() -> None:
    folder = os.environ.get("ALIGNFLOW_DATA")
    if not folder:
        pytest.skip("set ALIGNFLOW_DATA to the folder that holds the real benchmarks")
    records = read_pair_set(Path(folder) / "preferences" / "hhh_alignment.pairs.jsonl", None)
    assert Counter(record["subset"] for record in records) == {
        "harmless": 58,
        "helpful": 59,
        "honest": 61,
        "other": 43,
    }
    assert {len(record["prompt"]) % 2 for record in records} == {1}
    assert all(record["prompt"][-1]["role"] == "user" for record in records)
