"""The token audit: counted by hand, equal to what training then does, and judged by the recipe."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from alignflow.data_validation.canonical import SCHEMAS
from alignflow.data_validation.config import DataConfig, DatasetConfig
from alignflow.data_validation.leaks import SplitLeak
from alignflow.errors import DataError
from alignflow.training import audit
from alignflow.training.audit import audit_stage
from alignflow.training.chat import ChatTokenizer
from alignflow.training.config import (
    DPOConfig,
    PPOConfig,
    SFTConfig,
    StageConfig,
    SteerLM2Config,
    SteerLMConfig,
)
from alignflow.training.data import load_rows
from alignflow.training.stage_rows import stage_rows
from alignflow.training.token_audit import (
    AuditedStage,
    StageTokens,
    TokenAudit,
    TokenAuditConfig,
    judge_audit,
    row_fields,
)

Record = dict[str, Any]

SET = DatasetConfig(sources=["rows.jsonl"])
DATA = DataConfig(demonstrations=SET, preferences=SET)


def demonstration(name: str, *contents: str) -> Record:
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]
    return {"id": name, "messages": messages}


def pair(name: str, chosen: str, rejected: str, prompt: str) -> Record:
    return {
        "id": name,
        "prompt": [{"role": "user", "content": prompt}],
        "chosen": chosen,
        "rejected": rejected,
    }


def write_dataset(folder: Path, kind: str, records: Sequence[Record]) -> Path:
    (folder / "train").mkdir(parents=True)
    (folder / "card.json").write_text("{}")
    table = pa.Table.from_pylist(list(records), schema=SCHEMAS[kind])
    pq.write_table(table, folder / "train/part-00000.parquet")
    return folder


def audited(
    config: StageConfig, dataset: Path, model: Path, *, max_records: int = 100
) -> StageTokens:
    stage = AuditedStage(config=config, dataset="set")
    return audit_stage(stage, dataset, ChatTokenizer.load(model), max_records)


def length_of(model: Path, *contents: str) -> int:
    chat = ChatTokenizer.load(model)
    rendered = chat.render(demonstration("", *contents)["messages"])
    (row,) = chat.tokenize([rendered])
    return len(row.tokens_T)


def test_what_a_limit_cuts_is_counted_by_row_token_and_answer(
    tmp_path: Path, chatml_model: Path
) -> None:
    long, second, cut = ("Red?", "yes " * 50), ("Red?", "yes", "word " * 50, "no"), ("w " * 90, "y")
    records = [
        demonstration("short", "Red?", "yes"),
        demonstration("answer cut", *long),
        # What is left ends with the first answer and its end of turn.
        demonstration("second answer gone", *second),
        demonstration("nothing left", *cut),
        demonstration("no words", "Red?", " "),
    ]
    dataset = write_dataset(tmp_path / "set", "sft", records)
    found = audited(SFTConfig(max_length=60), dataset, chatml_model)
    lengths = [length_of(chatml_model, *row) for row in (("Red?", "yes"), long, second, cut)]
    assert (found.num_records, found.num_audited, found.num_rows) == (5, 5, 4)
    assert found.num_tokens == sum(lengths)
    assert found.percentiles["max"] == max(lengths)
    # Of four lengths the second smallest is the median, the largest is past all other shares.
    assert found.percentiles["p50"] == sorted(lengths)[1]
    assert found.percentiles["p90"] == max(lengths)
    assert found.num_over_limit == 3
    assert found.num_tokens_over == sum(lengths[1:]) - 3 * 60
    assert found.num_response_cut == 2
    assert found.num_missing_end == 1
    assert found.refused == {"response_cut_away": 1, "empty_response": 1}
    assert found.num_without_loss == 1


@pytest.mark.parametrize(
    "config",
    [
        SFTConfig(max_length=60),
        DPOConfig(max_length=60),
        PPOConfig(max_length=80, max_new_tokens=40),
    ],
)
def test_the_audit_says_what_training_then_counts(
    config: StageConfig, tmp_path: Path, chatml_model: Path
) -> None:
    if isinstance(config, SFTConfig):
        records = [demonstration(f"row-{n}", "Red?" * n, "yes " * 7 * n) for n in range(1, 14)]
        dataset = write_dataset(tmp_path / "set", "sft", records)
    else:
        records = [pair(f"row-{n}", "yes " * n, "no " * n, "Red? " * n) for n in range(1, 24)]
        dataset = write_dataset(tmp_path / "set", "preference", records)
    assert not isinstance(config, SteerLM2Config)
    kind, max_length = stage_rows(config, dataset)
    rows = load_rows(
        dataset,
        "train",
        kind,
        model=chatml_model,
        max_length=max_length,
        cache=tmp_path / "tokens",
        is_writer=True,
    )
    found = audited(config, dataset, chatml_model)
    assert found.refused == dict(rows.summary.reasons)
    assert found.num_over_limit
    kept = len(records) - sum(found.refused.values())
    assert rows.num_rows == kept * kind.rows_per_item
    if isinstance(config, SFTConfig):
        assert found.num_over_limit == rows.summary.num_truncated + found.num_without_loss


def test_a_large_set_is_sampled_evenly(
    tmp_path: Path, chatml_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "_BATCH_RECORDS", 3)
    records = [demonstration(f"row-{n}", "Red?", "yes " * n) for n in range(1, 21)]
    dataset = write_dataset(tmp_path / "set", "sft", records)
    found = audited(SFTConfig(), dataset, chatml_model, max_records=7)
    # Every third of 20 records: the 1st, 4th, ..., 19th.
    lengths = [length_of(chatml_model, "Red?", "yes " * n) for n in range(1, 21, 3)]
    assert (found.num_records, found.num_audited) == (20, 7)
    assert found.num_tokens == sum(lengths)


def test_an_empty_split_has_no_percentiles(tmp_path: Path, chatml_model: Path) -> None:
    dataset = write_dataset(tmp_path / "set", "sft", [])
    found = audited(SFTConfig(), dataset, chatml_model)
    assert (found.num_records, found.percentiles) == (0, {})
    assert judge_audit(TokenAudit(stages=[found]), TokenAuditConfig(), DATA) == []


def rated(name: str, prompt: str, answer: str, **ratings: int) -> Record:
    return {**demonstration(name, prompt, answer), "attributes": ratings}


def test_rated_rows_are_audited_with_their_ratings_in_the_prompt(
    tmp_path: Path, chatml_model: Path
) -> None:
    records = [
        rated("short", "Red?", "yes", quality=4, humor=0),
        rated("long", "Red?", "yes " * 50, quality=3, humor=0),
        rated("unrated", "Red?", "yes"),
    ]
    dataset = write_dataset(tmp_path / "set", "steerlm", records)
    found = audited(SteerLMConfig(max_length=90), dataset, chatml_model)
    lengths = [
        length_of(chatml_model, f"Red?\n\nattributes: quality:{quality},humor:0", answer)
        for quality, answer in ((4, "yes"), (3, "yes " * 50))
    ]
    assert found.num_tokens == sum(lengths)
    assert found.num_response_cut == 1
    assert found.refused == {"no_ratings": 1}


def test_prompts_of_steerlm2_ask_for_what_its_model_will_be_asked_for(
    tmp_path: Path, chatml_model: Path
) -> None:
    records = [
        rated("one", "Red?", "yes", quality=1, humor=2),
        rated("two", "Red?" * 30, "yes", quality=2, humor=2),
    ]
    dataset = write_dataset(tmp_path / "set", "steerlm", records)
    config = SteerLM2Config(max_length=90, max_new_tokens=20)
    stage = AuditedStage(config=config, dataset="set", wanted={"quality": 4, "toxicity": 0})
    found = audit_stage(stage, dataset, ChatTokenizer.load(chatml_model), 100)
    chat = ChatTokenizer.load(chatml_model)
    # No row knows toxicity; of humor, the commonest rating is asked for.
    prompts = ["Red?\n\nattributes: quality:4,humor:2", "Red?"]
    long = ["Red?" * 30 + "\n\nattributes: quality:4,humor:2", "Red?" * 30]
    rows = chat.tokenize(
        [chat.render_prompt([{"role": "user", "content": text}]) for text in [*prompts, *long]]
    )
    assert found.limit == 70
    assert found.num_tokens == sum(len(row.tokens_T) for row in rows)
    assert found.refused == {"prompt_too_long": 1}
    changed = stage.model_copy(update={"wanted": {"quality": 3}})
    assert row_fields(changed) != row_fields(stage)


def test_a_set_of_another_kind_and_prompts_that_ask_for_nothing_are_refused(
    tmp_path: Path, chatml_model: Path
) -> None:
    dataset = write_dataset(tmp_path / "set", "sft", [demonstration("one", "Red?", "yes")])
    with pytest.raises(DataError, match="no preference dataset"):
        audited(DPOConfig(), dataset, chatml_model)
    with pytest.raises(ValidationError, match="wanted and the stage steerlm2 go together"):
        AuditedStage(config=SteerLM2Config(), dataset="set")
    with pytest.raises(ValidationError, match="wanted and the stage steerlm2 go together"):
        AuditedStage(config=SteerLMConfig(), dataset="set", wanted={"quality": 4})


def tokens(**counts: Any) -> StageTokens:
    values: dict[str, Any] = {
        "stage": "sft",
        "dataset": "demonstrations",
        "limit": 512,
        "num_records": 10,
        "num_audited": 10,
        "num_rows": 10,
        "num_tokens": 100,
        "percentiles": {},
        "num_over_limit": 0,
        "num_tokens_over": 0,
        "num_response_cut": 0,
        "num_missing_end": 0,
        "refused": {},
    }
    return StageTokens(**{**values, **counts})


def test_a_bound_that_is_met_is_kept_and_one_row_more_is_not() -> None:
    kept = TokenAudit(stages=[tokens(num_over_limit=2, refused={"response_cut_away": 2})])
    assert judge_audit(kept, TokenAuditConfig(), DATA) == []
    passed = TokenAudit(stages=[tokens(num_over_limit=3, refused={"response_cut_away": 3})])
    first, second = judge_audit(passed, TokenAuditConfig(), DATA)
    assert (first.severity, second.severity) == ("critical", "warning")
    assert first.sentence == (
        "sft on demonstrations: 30.0% of the records would be left out (response_cut_away 3), "
        "more than token_audit.max_unlearnable_share (20.0%)"
    )
    assert "30.0% of the rows are longer than 512 tokens" in second.sentence


def test_the_recipe_chooses_bounds_and_severities() -> None:
    found = TokenAudit(stages=[tokens(num_response_cut=1, num_missing_end=1)])
    config = TokenAuditConfig.model_validate(
        {
            "max_response_cut_share": 0,
            "max_missing_end_share": 0.1,
            "severities": {"max_response_cut_share": "critical"},
        }
    )
    assert [item.severity for item in judge_audit(found, config, DATA)] == ["critical"]
    with pytest.raises(ValidationError, match="severities"):
        TokenAuditConfig.model_validate({"severities": {"max_cut": "critical"}})


def test_only_what_decides_the_rows_is_a_part_of_the_key() -> None:
    def key(config: StageConfig) -> dict[str, Any]:
        return row_fields(AuditedStage(config=config, dataset="preferences"))

    assert key(DPOConfig()) == key(DPOConfig(learning_rate=1e-3, beta=0.3))
    assert key(DPOConfig()) != key(DPOConfig(max_length=99))
    assert key(DPOConfig()) != key(DPOConfig(loss="rpo_sq"))
    assert key(PPOConfig()) != key(PPOConfig(max_new_tokens=99))


def test_held_out_prompts_that_are_trained_on_are_noted_or_end_the_run() -> None:
    leak = SplitLeak(held_out_of="preferences", train_of="sft", num_held_out=40, num_leaked=2)
    audit = TokenAudit(stages=[tokens()], leaks=[leak])
    (noted,) = judge_audit(audit, TokenAuditConfig(), DATA)
    assert noted.severity == "warning"
    assert noted.sentence.startswith("preferences: 2 of 40 held-out rows have a prompt that sft")
    strict = DATA.replaced(leak_severity="critical", max_leaked_share=0.04)
    assert [item.severity for item in judge_audit(audit, TokenAuditConfig(), strict)] == [
        "critical"
    ]
    assert judge_audit(audit, TokenAuditConfig(), DATA.replaced(max_leaked_share=0.05)) == []
