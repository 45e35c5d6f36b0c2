"""SteerLM's jobs on a tiny model: what rates answers, and what learns from the ratings."""

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from alignflow.data_validation.canonical import ATTRIBUTES, Split, read_split
from alignflow.data_validation.card import Card
from alignflow.data_validation.config import DatasetConfig
from alignflow.data_validation.ingest import ingest
from alignflow.jobs.run_folder import RunFolder
from alignflow.jobs.spec import JobResult, JobSpec
from alignflow.jobs.worker import JobStoppedError
from alignflow.training import annotate
from alignflow.training.__main__ import train
from alignflow.training.attributes import AttributeScale
from alignflow.training.chat import ChatTokenizer
from alignflow.training.export import export
from alignflow.training.megatron.inference import AttributeModel
from alignflow.training.steering import Steering

pytestmark = pytest.mark.integration

WORDS = ["red", "blue", "green", "warm", "cold", "tall", "short", "river", "house", "garden"]
SCALE = AttributeScale(("quality", "humor"), (2.0, 2.0))


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tensors this small are slower with several."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def attribute_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rates at random, past both ends of the ratings."""
    folder = tmp_path_factory.mktemp("attribute-model")
    shutil.copytree(tiny_model, folder, dirs_exist_ok=True)
    weight = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
    save_file({"weight": weight}, folder / "attribute_head.safetensors")
    SCALE.save(folder)
    return folder


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Demonstrations, some of two answers, and rated answers, as ingest writes them."""
    rng = random.Random(0)
    root = tmp_path_factory.mktemp("data")

    def turns(number: int) -> list[dict[str, str]]:
        roles = [("user", "?"), ("assistant", ".")] * number
        return [
            {"role": role, "content": " ".join(rng.choices(WORDS, k=6)) + end}
            for role, end in roles
        ]

    rows: dict[str, list[dict[str, Any]]] = {
        "sft": [{"id": f"demo-{i}", "messages": turns(1 + (i % 5 == 0))} for i in range(30)],
        "steerlm": [
            {"id": f"rated-{i}", "messages": turns(1), "attributes": {"quality": i % 5}}
            for i in range(20)
        ],
    }
    for kind in ("sft", "steerlm"):
        source = root / f"{kind}.jsonl"
        source.write_text("".join(json.dumps(row) + "\n" for row in rows[kind]))
        config = DatasetConfig(sources=[str(source)], held_out_share=0.2)
        ingest(config, kind, root / kind)
    return {"demonstrations": root / "sft", "rated": root / "steerlm"}


def new_job(path: Path, module: str, config: dict[str, Any]) -> RunFolder:
    folder = RunFolder(path)
    folder.create()
    folder.begin_attempt(JobSpec(name=path.name, module=module, config=config))
    return folder


def annotation_job(path: Path, model: Path, datasets: dict[str, Path], **config: Any) -> RunFolder:
    settings = {"precision": "fp32", "max_length": 200, "microbatch_tokens": 256, **config}
    folders = {name: str(folder) for name, folder in datasets.items()}
    return new_job(
        path,
        "alignflow.training.annotate",
        {"annotation": settings, "model": str(model), **folders},
    )


def rate(folder: RunFolder) -> JobResult:
    return annotate.main(folder, folder.read_spec())


def rows_of(folder: Path, split: Split) -> list[dict[str, Any]]:
    return list(read_split(folder, split))


def ratings_of(row: dict[str, Any]) -> dict[str, int]:
    return {name: value for name, value in row["attributes"].items() if value is not None}


@pytest.fixture(scope="module")
def annotated(
    attribute_model: Path, datasets: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[RunFolder, JobResult]:
    folder = annotation_job(tmp_path_factory.mktemp("jobs") / "annotate", attribute_model, datasets)
    return folder, rate(folder)


def test_every_answer_is_rated_in_the_split_of_its_record(
    annotated: tuple[RunFolder, JobResult], datasets: dict[str, Path], attribute_model: Path
) -> None:
    folder, result = annotated
    model = AttributeModel.load(attribute_model, precision="fp32")
    chat = ChatTokenizer.load(attribute_model)
    seen = set()
    for split in annotate.SPLITS:
        found = rows_of(folder.output, split)
        asked = rows_of(datasets["demonstrations"], split) + rows_of(datasets["rated"], split)
        answers = [turn for row in asked for turn in row["messages"] if turn["role"] == "assistant"]
        assert [row["messages"][-1] for row in found] == answers
        for row in found:
            (tokens,) = chat.tokenize([chat.render(row["messages"])])
            (values,) = model.rate([tokens.tokens_T.tolist()], max_tokens=256)
            expected = {
                name: min(4, max(0, round(value)))
                for name, value in zip(SCALE.names, values, strict=True)
            }
            given = {"quality": int(row["id"].split("-")[1]) % 5} if "rated" in row["id"] else {}
            assert ratings_of(row) == expected | given
            seen |= set(expected.values())
    assert seen == {0, 1, 2, 3, 4}
    assert {"demo-0-answer-1", "demo-0-answer-2"} <= {
        row["id"] for split in annotate.SPLITS for row in rows_of(folder.output, split)
    }
    assert result.details["num_train"] == len(rows_of(folder.output, "train"))
    assert sum(result.details["ratings"]["quality"]) == result.details["num_train"]


def test_the_output_is_a_dataset_with_a_card(
    annotated: tuple[RunFolder, JobResult], datasets: dict[str, Path]
) -> None:
    card = Card.load(annotated[0].output)
    assert card.kind == "steerlm"
    assert card.counts.accepted == 36 + 20
    assert [Path(source.uri).name for source in card.sources] == ["sft.jsonl", "steerlm.jsonl"]


def test_ratings_of_people_are_made_anew_where_asked_for(
    annotated: tuple[RunFolder, JobResult],
    attribute_model: Path,
    datasets: dict[str, Path],
    tmp_path: Path,
) -> None:
    folder = annotation_job(tmp_path / "job", attribute_model, datasets, keep_ratings=False)
    rate(folder)
    kept, anew = (
        [ratings_of(row) for row in rows_of(output, "train") if "rated" in row["id"]]
        for output in (annotated[0].output, folder.output)
    )
    assert [row["humor"] for row in kept] == [row["humor"] for row in anew]
    assert [row["quality"] for row in kept] != [row["quality"] for row in anew]


def test_a_conversation_that_is_cut_before_its_answer_is_refused_by_name(
    attribute_model: Path, datasets: dict[str, Path], tmp_path: Path
) -> None:
    demonstrations = {"demonstrations": datasets["demonstrations"]}
    folder = annotation_job(tmp_path / "job", attribute_model, demonstrations, max_length=40)
    result = rate(folder)
    assert {row["id"] for row in result.details["refused_rows"]} >= {"demo-0-answer-2"}
    assert {row["reason"] for row in result.details["refused_rows"]} == {"response_cut_away"}
    card = Card.load(folder.output)
    assert card.reasons == {"response_cut_away": len(result.details["refused_rows"])}


def test_a_stopped_job_goes_on_after_the_shards_that_are_done(
    annotated: tuple[RunFolder, JobResult],
    attribute_model: Path,
    datasets: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(annotate, "_RECORDS_PER_SHARD", 8)
    folder = annotation_job(tmp_path / "job", attribute_model, datasets)
    whole = AttributeModel.rate
    calls = []

    def stopping(self: AttributeModel, *args: Any, **kwargs: Any) -> list[list[float]]:
        calls.append(1)
        if len(calls) == 3:
            raise JobStoppedError("The job was told to stop.")
        return whole(self, *args, **kwargs)

    monkeypatch.setattr(AttributeModel, "rate", stopping)
    with pytest.raises(JobStoppedError):
        rate(folder)
    first = folder.output / "train/part-00000.parquet"
    before = first.stat().st_mtime_ns
    result = rate(folder)
    assert first.stat().st_mtime_ns == before
    assert len(list((folder.output / "train").iterdir())) > 3
    for split in annotate.SPLITS:
        assert rows_of(folder.output, split) == rows_of(annotated[0].output, split)
    assert result == annotated[1]
    # Another config is another job: nothing of what lies there counts.
    other = annotation_job(tmp_path / "job", attribute_model, datasets, keep_ratings=False)
    rate(other)
    assert first.stat().st_mtime_ns != before


def test_steerlm_learns_from_ratings_and_says_what_to_ask(
    annotated: tuple[RunFolder, JobResult], tiny_model: Path, tmp_path: Path
) -> None:
    config = {
        "stage": {
            "stage": "steerlm",
            "precision": "fp32",
            "learning_rate": 2e-3,
            "global_batch_size": 8,
            "microbatch_tokens": 512,
            "checkpoint_every_steps": 2,
            "wanted": {"quality": 4, "violence": 0},
        },
        "model": str(tiny_model),
        "dataset": str(annotated[0].output),
    }
    folder = new_job(tmp_path / "steerlm", "alignflow.training", config)
    result = train(folder, folder.read_spec())
    assert result.metrics["steerlm/held_out_loss"] < result.metrics["steerlm/held_out_loss_first"]
    steering = Steering.load(folder.output)
    assert steering is not None
    assert steering.wanted == result.details["wanted"]
    assert set(steering.wanted) == {"quality", "humor"} <= set(ATTRIBUTES)
    assert steering.wanted["quality"] == 4
    assert result.details["not_trained"] == ["violence"]

    spec = JobSpec(
        name="export",
        module="alignflow.training.export",
        config={"run_folder": str(folder.path), "checkpoint": "step-00000002"},
    )
    exported = RunFolder(tmp_path / "export")
    exported.create()
    exported.begin_attempt(spec)
    export(exported, spec)
    assert Steering.load(exported.output) == steering
