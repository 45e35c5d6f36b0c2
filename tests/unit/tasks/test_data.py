"""Data stages: what names a source, and what it is read under."""

import re
from pathlib import Path

import pytest

from alignflow import known_files
from alignflow.data_validation.config import DatasetConfig
from alignflow.errors import DataError
from alignflow.model_source import check_copy, copy_model, resolve_model
from alignflow.sources import fetch_file
from alignflow.tasks.data import ingest_dataset, pinned_sources
from alignflow.tasks.pipeline import Pipeline

COMMIT = "0123abc"


@pytest.mark.parametrize(
    "source", ["OWNER/NAME", "hf://datasets/OWNER/NAME", "hf://datasets/OWNER/NAME@main"]
)
def test_set_of_the_hub_is_read_at_the_commit_of_its_key(source: str) -> None:
    config = DatasetConfig(sources=["rows.jsonl", source])
    identities = [{"name": "rows.jsonl", "sha256": "0" * 64}, {"uri": source, "commit": COMMIT}]
    pinned = pinned_sources(config, identities)
    assert pinned == ["rows.jsonl", f"hf://datasets/OWNER/NAME@{COMMIT}"]


def test_model_that_changes_while_it_is_copied_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    (folder / "model.safetensors").write_text("weights")
    source = resolve_model(str(folder), cache=tmp_path)
    check_copy(source, copy_model(source.path, tmp_path / "first"))
    (folder / "model.safetensors").write_text("other")
    with pytest.raises(DataError, match=r"model\.safetensors: the file changed"):
        check_copy(source, copy_model(source.path, tmp_path / "second"))


def test_quarantine_of_a_refused_set_is_kept_in_the_store(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    (tmp_path / "preferences.jsonl").write_text('{"prompt": "why?", "chosen": "so"}\n')
    with pytest.raises(DataError, match=r"no row is accepted: 1 of 1 rows refused") as caught:
        ingest_dataset.fn(pipeline, "preferences", "preference", {})
    local, kept = re.findall(r"in (\S*quarantine\.jsonl)", str(caught.value))
    assert kept.startswith(f"file://{pipeline.workspace}/artifacts/artifacts/")
    assert "missing_key" in Path(local).read_text()
    assert fetch_file(kept, tmp_path).path.read_bytes() == Path(local).read_bytes()


def test_sources_of_a_forced_stage_are_read_again(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_files, "_YOUNG_S", 0.0)
    (tmp_path / "preferences.jsonl").write_text('{"prompt": "why?", "chosen": "so"}\n')

    def keys() -> set[str]:
        with pytest.raises(DataError, match="no row is accepted"):
            ingest_dataset.fn(pipeline, "preferences", "preference", {})
        return {folder.name for folder in (pipeline.workspace / "ingest").iterdir()}

    first = keys()
    (record,) = (pipeline.cache / "known").iterdir()
    digest = record.read_text()
    record.write_text("0" * 64)
    assert len(keys()) == 2, "the digest is that of the record"
    pipeline.forced = frozenset({"preferences"})
    assert len(keys()) == 2
    assert record.read_text() == digest
    assert len(first) == 1
