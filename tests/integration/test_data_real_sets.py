"""Real sets, and a folder of broken ones with the decision that each row deserves."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from alignflow.data_validation.benchmarks import benchmark_texts
from alignflow.data_validation.check import check_file
from alignflow.data_validation.config import DataKind, DatasetConfig
from alignflow.data_validation.ingest import ingest
from alignflow.data_validation.streams import NamedFile
from alignflow.sources import fetch_file

DATA = Path(os.environ.get("ALIGNFLOW_DATA", "/nonexistent"))
BAD = DATA / "bad"
KINDS: dict[str, DataKind] = {"preference": "preference", "sft": "sft", "attributes": "steerlm"}

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not BAD.is_dir(), reason="ALIGNFLOW_DATA names no folder with data"),
]


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    cache = tmp_path_factory.mktemp("cache")
    names = ("truthfulqa/TruthfulQA.csv", "toxigen/annotated_safenlp.json")
    return [text for name in names for text in benchmark_texts(fetch_file(str(DATA / name), cache))]


def expected_files() -> dict[str, Any]:
    path = BAD / "expected.json"
    files: dict[str, Any] = json.loads(path.read_text())["files"] if path.is_file() else {}
    return files


@pytest.mark.parametrize("name", expected_files())
def test_broken_data_is_decided_on_row_by_row(name: str, benchmark: list[str]) -> None:
    expected = expected_files()[name]
    rows = expected.get("rows", [])
    against = BAD / "split_train.jsonl" if name == "split_valid.jsonl" else None
    holds_items = any(row.get("reason") == "eval_contamination" for row in rows)
    report = check_file(
        BAD / name,
        KINDS[expected["kind"]],
        against=NamedFile(against, str(against)) if against else None,
        decontaminate=benchmark if holds_items else (),
    )
    assert report.decision == expected["file_decision"]
    if "file_reason" in expected:
        assert report.reason == expected["file_reason"]
    found = {row.line: (row.decision, row.reason, sorted(row.flags)) for row in report.rows}
    for row in rows:
        wanted = (row["decision"], row.get("reason"), sorted(row.get("flags", [])))
        assert found.pop(row["line"], ("accept", None, [])) == wanted, row
    assert not found


@pytest.mark.parametrize(
    ("name", "kind", "accepted", "reasons"),
    [
        (
            # 4 empty responses, 5 pairs whose transcripts part before the last turn, 4 transcripts
            # in which the assistant speaks twice.
            "preferences/hh_rlhf_harmless_base_test.raw.jsonl.gz",
            "preference",
            2281,
            {"pii": 17, "prefix_mismatch": 5, "empty_value": 4, "role_order": 4, "prompt_echo": 1},
        ),
        (
            "preferences/ultrafeedback_binarized_700.jsonl",
            "preference",
            685,
            {
                "identical_responses": 5,
                "pii": 4,
                "special_token": 3,
                "empty_value": 2,
                "bidi_control": 1,
            },
        ),
        ("preferences/oasst1_val.pairs.jsonl", "preference", 709, {"pii": 1}),
        (
            "attributes/oasst1_val_steerlm.jsonl",
            "steerlm",
            1207,
            {"pii": 1, "conflicting_attributes": 1},
        ),
        ("sft/oasst1_val_best.jsonl", "sft", 472, {}),
        ("sft/self_instruct_seed_tasks.jsonl", "sft", 173, {"pii": 2}),
        ("sft/gsm8k_train_2000.jsonl", "sft", 2000, {}),
    ],
)
def test_real_sets_pass_but_for_what_is_wrong_with_them(
    name: str, kind: DataKind, accepted: int, reasons: dict[str, int], benchmark: list[str]
) -> None:
    report = check_file(DATA / name, kind, decontaminate=benchmark)
    assert report.counts["accept"] == accepted
    assert report.reasons == reasons


def test_real_sets_are_ingested_together(tmp_path: Path) -> None:
    names = ("oasst1_val_best.jsonl", "self_instruct_seed_tasks.jsonl", "gsm8k_train_2000.jsonl")
    config = DatasetConfig(sources=[str(DATA / "sft" / name) for name in names])
    card = ingest(config, "sft", tmp_path / "set")
    counts = card.counts
    assert (counts.accepted, counts.refused) == (2645, 2)
    assert (counts.train, counts.held_out) == (2381, 264)
    assert all(item.success for item in card.expectations)
