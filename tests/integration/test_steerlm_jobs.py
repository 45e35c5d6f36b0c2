"""SteerLM's jobs on a tiny model: what rates answers, and what learns from the ratings."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from job_runs import WORDS, export_checkpoint, make_job, run_here
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from alignflow.data_validation.canonical import ATTRIBUTES, Split, read_split
from alignflow.data_validation.card import Card
from alignflow.data_validation.config import DataKind, DatasetConfig
from alignflow.data_validation.ingest import ingest
from alignflow.errors import DataError
from alignflow.evaluation.config import EvaluationJob
from alignflow.evaluation.run import evaluate
from alignflow.jobs.local import LocalLauncher
from alignflow.jobs.run_folder import RunFolder
from alignflow.jobs.spec import JobResult
from alignflow.jobs.wait import cancel_on_exit, wait_for
from alignflow.jobs.worker import JobStoppedError, read_config
from alignflow.training import annotate
from alignflow.training.attributes import AttributeScale
from alignflow.training.chat import ChatTokenizer
from alignflow.training.megatron.judges import AttributeModel
from alignflow.training.steering import Steering

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("one_thread")]

SCALE = AttributeScale(("quality", "humor"), (2.0, 2.0))


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


def annotation_job(path: Path, model: Path, datasets: dict[str, Path], **config: Any) -> RunFolder:
    settings = {"precision": "fp32", "max_length": 200, "microbatch_tokens": 256, **config}
    folders = {name: str(folder) for name, folder in datasets.items()}
    return make_job(
        path,
        {"annotation": settings, "model": str(model), **folders},
        module="alignflow.training.annotate",
    )


def evaluated(path: Path, config: dict[str, Any]) -> RunFolder:
    folder = make_job(path, config, module="alignflow.evaluation")
    evaluate(read_config(folder, folder.read_spec(), EvaluationJob), folder)
    return folder


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
    stale = folder.output / "train/part-00099.parquet"
    shutil.copy(first, stale)
    other = annotation_job(tmp_path / "job", attribute_model, datasets, keep_ratings=False)
    rate(other)
    assert first.stat().st_mtime_ns != before
    assert not stale.exists()


def test_a_set_of_another_kind_is_refused(
    attribute_model: Path, datasets: dict[str, Path], tmp_path: Path
) -> None:
    demonstrations = datasets["demonstrations"]
    others = {"demonstrations": datasets["rated"], "rated": demonstrations}
    with pytest.raises(DataError, match="no steerlm dataset, it has no column 'attributes'"):
        rate(annotation_job(tmp_path / "job", attribute_model, others))


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
    folder = make_job(tmp_path / "steerlm", config)
    result = run_here(folder)
    assert result.metrics["steerlm/held_out_loss"] < result.metrics["steerlm/held_out_loss_first"]
    steering = Steering.load(folder.output)
    assert steering is not None
    assert steering.wanted == result.details["wanted"]
    assert set(steering.wanted) == {"quality", "humor"} <= set(ATTRIBUTES)
    assert steering.wanted["quality"] == 4
    assert result.details["not_trained"] == ["violence"]

    exported, _ = export_checkpoint(folder, 2, tmp_path / "export")
    assert Steering.load(exported.output) == steering


@pytest.fixture(scope="module")
def preferences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("preferences")
    questions = ["which colour is warm", "where is the river", "name a house"]
    pairs = [
        {"prompt": f"{question}?", "chosen": "red garden", "rejected": "a cold river"}
        for question in questions
    ]
    source = folder / "pairs.jsonl"
    source.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    config = DatasetConfig(sources=[str(source)], held_out_share=0.99)
    ingest(config, "preference", folder / "set")
    return folder / "set"


Judged = dict[str, tuple[dict[str, Any], RunFolder]]


@pytest.fixture(scope="module")
def judged(
    tiny_model: Path,
    attribute_model: Path,
    preferences: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Judged:
    """Scores and run folder of one model, as it is and as one that is asked for ratings."""
    root = tmp_path_factory.mktemp("judged")
    reward_model = root / "reward-model"
    shutil.copytree(tiny_model, reward_model)
    save_file({"weight": torch.linspace(-1, 1, 64)[None]}, reward_model / "reward_head.safetensors")
    (reward_model / "reward_scale.json").write_text('{"mean": 0.0, "std": 1.0}')
    shutil.copytree(tiny_model, root / "steerlm-model")
    # Weights large enough that answers are more than the last token repeated.
    config = AutoConfig.from_pretrained(tiny_model)
    config.tie_word_embeddings, config.initializer_range = False, 0.2
    torch.manual_seed(2)
    AutoModelForCausalLM.from_config(config).save_pretrained(root / "steerlm-model")
    shutil.copytree(root / "steerlm-model", root / "plain-model")
    Steering({"quality": 4, "humor": 1}).save(root / "steerlm-model")
    evaluation = {
        "precision": "fp32",
        "max_length": 400,
        "max_new_tokens": 8,
        "num_samples": 2,
        "steered_attributes": ["quality", "humor"],
        "max_steering_prompts": 2,
    }
    done = {}
    for name in ("plain", "steerlm"):
        config = {
            "evaluation": evaluation,
            "model": str(root / f"{name}-model"),
            "parent": str(tiny_model),
            "reward_model": str(reward_model),
            "attribute_model": str(attribute_model),
            "preferences": str(preferences),
        }
        folder = evaluated(root / name, config)
        scores = json.loads((folder.output / "scores.json").read_text())
        done[name] = (scores, folder)
    return done


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def greedy(folder: Path, prompt: list[dict[str, str]]) -> str:
    """The answer that transformers gives."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer.apply_chat_template(
        prompt, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = AutoModelForCausalLM.from_pretrained(folder).generate(
        **tokens,
        max_new_tokens=8,
        do_sample=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=0,
    )[0, tokens["input_ids"].size(1) :]
    return str(tokenizer.decode(answer, skip_special_tokens=True))


def test_a_steerlm_model_is_asked_for_what_is_wanted(judged: Judged) -> None:
    plain, steerlm = (folder for _, folder in judged.values())
    model = Path(steerlm.read_spec().config["model"])
    for sample in read_jsonl(steerlm.output / "samples.jsonl"):
        (turn,) = sample["prompt"]
        assert "attributes" not in turn["content"]
        asked = {**turn, "content": f"{turn['content']}\n\nattributes: quality:4,humor:1"}
        assert sample["answer"] == greedy(model, [asked]) != greedy(model, [turn])
    # The policy is given other prompts; the reward model is not.
    for suite, is_same in (("preference", False), ("reward_model", True)):
        items = [read_jsonl(f.output / "items" / f"{suite}.jsonl") for f in (plain, steerlm)]
        assert (items[0] == items[1]) == is_same


def test_more_is_compared_with_less_by_the_attribute_model(
    judged: Judged, attribute_model: Path
) -> None:
    scores, folder = judged["steerlm"]
    model = Path(folder.read_spec().config["model"])
    chat = ChatTokenizer.load(attribute_model)
    attributes = AttributeModel.load(attribute_model, precision="fp32")
    items = read_jsonl(folder.output / "items" / "steerlm.jsonl")
    assert [item["attribute"] for item in items] == ["quality", "quality", "humor", "humor"]
    for item in items:
        (turn,) = item["prompt"]
        for side, rating in (("least", 0), ("most", 4)):
            ratings = {"quality": 4, "humor": 1, item["attribute"]: rating}
            line = f"attributes: quality:{ratings['quality']},humor:{ratings['humor']}"
            asked = {**turn, "content": f"{turn['content']}\n\n{line}"}
            answer = item[side]["answer"]
            assert answer == greedy(model, [asked])
            (row,) = chat.tokenize([chat.render([turn, {"role": "assistant", "content": answer}])])
            (values,) = attributes.rate([row.tokens_T.tolist()], max_tokens=256)
            expected = values[SCALE.names.index(item["attribute"])]
            assert item[side]["rating"] == pytest.approx(expected, abs=1e-4)
    for name in SCALE.names:
        differences = [
            item["most"]["rating"] - item["least"]["rating"]
            for item in items
            if item["attribute"] == name
        ]
        assert scores["scores"][f"steerlm/{name}_response"] == pytest.approx(
            sum(differences) / len(differences)
        )
        low, high = scores["intervals"][f"steerlm/{name}_response"]
        assert low < high


def test_every_model_has_its_sample_answers_rated(judged: Judged) -> None:
    for name, (scores, folder) in judged.items():
        samples = read_jsonl(folder.output / "samples.jsonl")
        mean = sum(sample["ratings"]["humor"] for sample in samples) / len(samples)
        assert scores["scores"]["samples/humor"] == pytest.approx(mean)
        assert ("steerlm/quality_response" in scores["scores"]) == (name == "steerlm")
    rows = [row for row in read_jsonl(judged["steerlm"][1].metrics) if row["phase"] == "evaluate"]
    assert rows[-1]["step"] == rows[-1]["num_steps"]


def test_two_processes_answer_and_rate_as_one_does(
    judged: Judged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALIGNFLOW_SLOTS_DIR", str(tmp_path / "slots"))
    scores, alone = judged["steerlm"]
    spec = alone.read_spec()
    evaluation = {**spec.config["evaluation"], "data_parallel_size": 2}
    folder = RunFolder(tmp_path / "two")
    two = spec.replaced(config={**spec.config, "evaluation": evaluation}, processes_per_node=2)
    job = LocalLauncher().submit(two, folder)
    with cancel_on_exit(job):
        wait_for(job, folder)
    found = json.loads((folder.output / "scores.json").read_text())
    assert found["scores"] == pytest.approx(scores["scores"], rel=1e-6, abs=1e-5)
    for part in ("samples", "samples.ratings", "steerlm", "steerlm.ratings"):
        shares = [folder.path / "answers" / f"{part}-{rank}.jsonl" for rank in (0, 1)]
        assert all(share.read_text().strip() for share in shares)
    mine, others = (read_jsonl(f.output / "items" / "steerlm.jsonl") for f in (folder, alone))
    for item, other in zip(mine, others, strict=True):
        for side in ("least", "most"):
            assert item[side]["answer"] == other[side]["answer"]
            assert item[side]["rating"] == pytest.approx(other[side]["rating"], abs=1e-5)


def test_an_attribute_that_was_not_trained_stops_the_job(judged: Judged, tmp_path: Path) -> None:
    config = judged["steerlm"][1].read_spec().config
    config["evaluation"]["steered_attributes"] = ["violence"]
    with pytest.raises(DataError, match="wasn't trained on the attribute 'violence'"):
        evaluated(tmp_path / "job", config)


@pytest.mark.slow
def test_asking_for_more_gives_more(tiny_model: Path, tmp_path: Path) -> None:
    """From rated answers to a model that is good or bad as it is asked, each job for real."""
    rng = random.Random(1)

    def rated(number: int) -> dict[str, Any]:
        is_good = number % 2 == 0
        answer = f"{'yes:' if is_good else 'no!'} {' '.join(rng.choices(WORDS, k=3))}"
        messages = [
            {"role": "user", "content": f"{' '.join(rng.choices(WORDS, k=4))} {number}"},
            {"role": "assistant", "content": answer},
        ]
        return {"messages": messages, "attributes": {"quality": 4 if is_good else 0}}

    rows: dict[DataKind, list[dict[str, Any]]] = {
        "steerlm": [rated(number) for number in range(160)],
        "sft": [{"messages": rated(number)["messages"]} for number in range(1000, 1040)],
        "preference": [
            {
                "prompt": f"{' '.join(rng.choices(WORDS, k=4))} {n}",
                "chosen": "yes",
                "rejected": "no",
            }
            for n in range(2000, 2012)
        ],
    }
    folders = {}
    for kind, records in rows.items():
        source = tmp_path / f"{kind}.jsonl"
        source.write_text("".join(json.dumps(record) + "\n" for record in records))
        folders[kind] = tmp_path / f"{kind}-set"
        ingest(DatasetConfig(sources=[str(source)], held_out_share=0.2), kind, folders[kind])
    trainer = {
        "precision": "fp32",
        "learning_rate": 3e-3,
        "global_batch_size": 16,
        "num_epochs": 40,
        "checkpoint_every_steps": 1000,
    }

    def trained(stage: str, dataset: Path, **settings: Any) -> Path:
        config = {
            "stage": {"stage": stage, **trainer, **settings},
            "model": str(tiny_model),
            "dataset": str(dataset),
        }
        folder = make_job(tmp_path / stage.replace("_", "-"), config)
        run_here(folder)
        return folder.output

    attributes = trained("attribute_model", folders["steerlm"], max_steps=80)
    annotation = annotation_job(
        tmp_path / "annotate",
        attributes,
        {"demonstrations": folders["sft"], "rated": folders["steerlm"]},
    )
    ratings = rate(annotation).details["ratings"]["quality"]
    # The demonstrations, half of them good, are told apart as the rated answers are.
    assert sum(ratings[3:]) == pytest.approx(sum(ratings[:2]), rel=0.2)
    policy = trained("steerlm", annotation.output, max_steps=300)
    evaluation = {
        "precision": "fp32",
        "max_length": 400,
        "max_new_tokens": 8,
        "num_samples": 0,
        "steered_attributes": ["quality"],
        "max_steering_prompts": 10,
    }
    config = {
        "evaluation": evaluation,
        "model": str(policy),
        "attribute_model": str(attributes),
        "preferences": str(folders["preference"]),
    }
    folder = evaluated(tmp_path / "evaluate", config)
    scores = json.loads((folder.output / "scores.json").read_text())
    assert scores["scores"]["steerlm/quality_response"] > 3
