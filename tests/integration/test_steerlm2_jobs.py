"""SteerLM 2.0's job on a tiny model: from its own answers, weighed, to a model that fits better."""

import json
import math
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numpy as np
import pytest
import torch
from job_runs import (
    WORDS,
    assert_same_end,
    change_job,
    export_checkpoint,
    exported,
    lines,
    make_job,
    run_here,
    run_in_two_processes,
    start,
    steps,
    wait_for_step,
)
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from alignflow.data_validation.config import DatasetConfig
from alignflow.data_validation.ingest import ingest
from alignflow.errors import ConfigError, DataError
from alignflow.jobs.run_folder import RunFolder
from alignflow.jobs.worker import JobStoppedError
from alignflow.training.attributes import AttributeScale
from alignflow.training.chat import ChatTokenizer
from alignflow.training.config import SteerLM2Config
from alignflow.training.errors import ReferenceMismatchError, SamplerMismatchError
from alignflow.training.likelihood import rating_log_likelihood
from alignflow.training.megatron import frozen, model, run
from alignflow.training.megatron.inference import LanguageModel
from alignflow.training.megatron.judges import AttributeModel
from alignflow.training.megatron.model import PackedModel
from alignflow.training.rows import TokenRows
from alignflow.training.stages.steerlm2 import check_ended, check_first_loss
from alignflow.training.steering import Steering

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("one_thread")]

SCALE = AttributeScale(("quality", "humor"), (2.0, 2.0))
WANTED = {"quality": 4, "humor": 1}
STAGE: dict[str, Any] = {
    "stage": "steerlm2",
    "precision": "fp32",
    "max_length": 96,
    "learning_rate": 1e-3,
    "microbatch_tokens": 256,
    "global_batch_size": 6,
    "max_prompts": 15,
    "samples_per_prompt": 4,
    "max_new_tokens": 8,
    "generation_tokens": 512,
    "max_validation_rows": 4,
    "checkpoint_every_steps": 1,
}


@pytest.fixture(scope="module")
def models(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A SteerLM model, one that rates at random, and one that answers without being asked."""
    root = tmp_path_factory.mktemp("models")
    folders = {name: root / name for name in ("model", "attribute_model", "prior_model")}
    for folder in folders.values():
        shutil.copytree(tiny_model, folder)
    Steering(WANTED).save(folders["model"])
    weight = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
    save_file({"weight": weight}, folders["attribute_model"] / "attribute_head.safetensors")
    SCALE.save(folders["attribute_model"])
    torch.manual_seed(5)
    other = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tiny_model))
    other.save_pretrained(folders["prior_model"])
    return folders


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rated answers; the prompts of some come twice."""
    rng = random.Random(0)
    folder = tmp_path_factory.mktemp("rated")
    prompts = [" ".join(rng.choices(WORDS, k=rng.randint(2, 6))) for _ in range(30)]
    rows = [
        {
            "messages": [
                {"role": "user", "content": prompt},
                {"role": "assistant", "content": " ".join(rng.choices(WORDS, k=4)) + f" {number}"},
            ],
            "attributes": {"quality": number % 5},
        }
        for number, prompt in enumerate([*prompts, *prompts[:4]])
    ]
    source = folder / "rated.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = DatasetConfig(sources=[str(source)], held_out_share=0.2)
    ingest(config, "steerlm", folder / "set")
    return folder / "set"


MakeRun = Callable[..., RunFolder]


@pytest.fixture
def make_run(tmp_path: Path, models: dict[str, Path], dataset: Path) -> MakeRun:
    """Makes a run folder with its job: `make_run(name, processes=1, **config)`."""

    def make(name: str, *, processes: int = 1, **config: Any) -> RunFolder:
        job = {
            "stage": {**STAGE, **config},
            "dataset": str(dataset),
            **{role: str(path) for role, path in models.items()},
        }
        return make_job(tmp_path / name, job, processes=processes)

    return make


def sampled_rows(folder: RunFolder, name: str) -> TokenRows:
    path = folder.path / "tokens" / name
    digest = json.loads((path / "rows.json").read_text())["digest"]
    rows = TokenRows.open(path, digest=digest, rows_per_item=STAGE["samples_per_prompt"])
    assert rows is not None
    return rows


def test_a_job_draws_the_model_towards_its_target(
    make_run: MakeRun, models: dict[str, Path]
) -> None:
    folder = make_run("job", num_epochs=4)
    result = run_here(folder)
    metrics = result.metrics
    # All responses have the same odds at first: the loss is how unequal their weights are.
    assert metrics["steerlm2/loss_first"] == pytest.approx(
        metrics["steerlm2/uniform_kl_first"], abs=1e-5
    )
    assert metrics["steerlm2/loss"] < metrics["steerlm2/loss_first"] / 2
    assert metrics["steerlm2/sampler_delta"] < 1e-4
    assert 1 < metrics["steerlm2/effective_samples_first"] < 4
    assert 0 < metrics["steerlm2/response_tokens"] <= 8
    assert metrics["steerlm2/log_likelihood"] < 0
    # 15 prompts, four responses each, in three steps an epoch.
    assert len(steps(folder)) == 12
    assert result.details["num_rows"] == 60
    assert result.details["num_models"] == 1
    assert result.details["mean_ratings"].keys() == WANTED.keys()
    assert Steering.load(folder.output) == Steering(WANTED)
    for phase in ("sample", "rate", "prior", "reference"):
        last = lines(folder, phase)[-1]
        assert last["step"] == last["num_steps"], phase


def test_weights_are_those_of_models_asked_one_by_one(
    make_run: MakeRun, models: dict[str, Path], dataset: Path
) -> None:
    """The first held-out loss, from log-probabilities of transformers and each answer's words."""
    folder = make_run("job", max_steps=1)
    metrics = run_here(folder).metrics
    asked, plain = (sampled_rows(folder, f"held_out_{name}") for name in ("asked", "plain"))
    chat = ChatTokenizer.load(models["model"])
    steered, prior = (
        AutoModelForCausalLM.from_pretrained(models[name]).eval()
        for name in ("model", "prior_model")
    )
    rater = AttributeModel.load(models["attribute_model"], precision="fp32")

    @torch.no_grad()
    def logp(model: Any, row: Any) -> float:
        tokens = torch.from_numpy(np.array(row.tokens_T)).long()
        logps = model(tokens[None]).logits[0].log_softmax(-1)[:-1].gather(1, tokens[1:, None])[:, 0]
        return float(logps[torch.from_numpy(np.array(row.is_learnt_T[1:]))].double().sum())

    def likelihood(row: Any) -> float:
        tokens = row.tokens_T.tolist()
        if tokens[-1] in chat.stop_tokens:
            tokens = tokens[:-1]
        (predicted,) = rater.rate([[*tokens, *chat.closing_tokens]], max_tokens=256)
        wanted = torch.tensor([WANTED[name] for name in SCALE.names])
        return float(
            rating_log_likelihood(torch.tensor([predicted]), wanted, concentration=24.0).sum()
        )

    losses = []
    for item in range(len(asked)):
        rows = range(4 * item, 4 * item + 4)
        for row in rows:
            answers = [r.row(row).tokens_T[r.row(row).is_learnt_T].tolist() for r in (asked, plain)]
            assert answers[0] == answers[1]
            words = chat.decode(asked.row(row).tokens_T.tolist())
            assert "attributes: quality:4,humor:1" in words
            assert "attributes" not in chat.decode(plain.row(row).tokens_T.tolist())
        logs = [
            likelihood(plain.row(row)) + logp(prior, plain.row(row)) - logp(steered, asked.row(row))
            for row in rows
        ]
        weights = torch.tensor(logs, dtype=torch.float64).softmax(0)
        losses.append(float((weights * (weights.log() + math.log(4))).sum()))
    assert len(losses) == 4
    expected = sum(losses) / len(losses)
    assert metrics["steerlm2/held_out_loss_first"] == pytest.approx(expected, rel=1e-3)


def test_one_model_is_in_memory_at_a_time(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: WeakSet[PackedModel] = WeakSet()
    others: list[int] = []
    build = model.build_model

    def counting(*args: Any, **kwargs: Any) -> PackedModel:
        others.append(len(built))
        made = build(*args, **kwargs)
        built.add(made)
        return made

    for module in (frozen, run):
        monkeypatch.setattr(module, "build_model", counting)
    run_here(make_run("job", max_steps=1))
    # The sampler, the attribute model, the SFT model and the model in training.
    assert others == [0, 0, 0, 0]


@pytest.mark.parametrize("phase", ["sample", "rate", "prior"])
def test_a_job_that_was_stopped_before_training_goes_on(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    from alignflow.training import steered_responses

    monkeypatch.setattr(steered_responses, "_CHUNK", 4)
    undisturbed = make_run("undisturbed", max_steps=2)
    run_here(undisturbed)
    folder = make_run("stopped", max_steps=2)
    method = {
        "sample": (LanguageModel, "sample"),
        "rate": (AttributeModel, "rate_trees"),
        "prior": (LanguageModel, "forward"),
    }[phase]
    whole = getattr(*method)
    calls = []

    def stopping(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise JobStoppedError("The job was told to stop.")
        return whole(self, *args, **kwargs)

    monkeypatch.setattr(*method, stopping)
    with pytest.raises(JobStoppedError):
        run_here(folder)
    kept = {path: path.stat().st_mtime_ns for path in folder.path.glob("tokens/sampled/*.json")}
    # Of four prompts each, and of four held-out ones.
    assert len(kept) == (1 if phase == "sample" else 5)
    run_here(folder)
    # What was sampled isn't sampled again.
    assert all(path.stat().st_mtime_ns == at for path, at in kept.items())
    assert_same_end(folder, undisturbed)


@pytest.mark.parametrize(
    "end", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_a_job_that_was_ended_resumes_to_the_same_end(
    make_run: MakeRun, end: signal.Signals
) -> None:
    undisturbed = make_run("undisturbed", num_epochs=6)
    expected = run_here(undisturbed)
    folder = make_run("ended", num_epochs=6)
    with start(folder) as process:
        wait_for_step(folder, 3)
        process.send_signal(end)
    assert not folder.output.joinpath("model.safetensors").exists()
    assert run_here(folder).metrics == expected.metrics
    assert_same_end(folder, undisturbed)


def test_two_processes_sample_and_learn_as_one(make_run: MakeRun) -> None:
    one = make_run("one", max_steps=3)
    expected = run_here(one)
    # 15 prompts, 6 and 6 and 3 a step; one held-out prompt leaves a rank without any.
    two = make_run("two", max_steps=3, processes=2, parallel={"data_parallel_size": 2})
    run_in_two_processes(two)
    result = two.read_result()
    assert result is not None
    assert result.metrics == pytest.approx(expected.metrics, rel=1e-3, abs=1e-4)
    for name in ("train_asked", "held_out_plain"):
        assert sampled_rows(two, name).tokens.tolist() == sampled_rows(one, name).tokens.tolist()


def test_with_adapters_and_a_temperature_it_begins_as_the_sampler_too(make_run: MakeRun) -> None:
    result = run_here(make_run("lora", lora={"rank": 4, "alpha": 8}, temperature=0.7, num_epochs=4))
    metrics = result.metrics
    assert metrics["steerlm2/loss_first"] == pytest.approx(
        metrics["steerlm2/uniform_kl_first"], abs=1e-5
    )
    assert metrics["steerlm2/loss"] < metrics["steerlm2/loss_first"]
    assert metrics["steerlm2/sampler_delta"] < 1e-4


def test_the_invariants_hold_in_bf16_too(make_run: MakeRun) -> None:
    metrics = run_here(make_run("bf16", precision="bf16", max_steps=2)).metrics
    assert metrics["steerlm2/loss_first"] == pytest.approx(
        metrics["steerlm2/uniform_kl_first"], abs=1e-3
    )


def test_a_policy_that_is_not_the_sampler_stops_the_job() -> None:
    with pytest.raises(ReferenceMismatchError, match="not the model that sampled"):
        check_first_loss({"loss": 0.9, "uniform_kl": 1.0}, precision="bf16")
    with pytest.raises(ReferenceMismatchError):
        check_first_loss({"loss": math.nan, "uniform_kl": 1.0}, precision="fp32")


def test_sampling_that_training_disagrees_with_stops_the_job(make_run: MakeRun) -> None:
    with pytest.raises(SamplerMismatchError, match="max_sampler_delta 1e-12"):
        run_here(make_run("job", max_sampler_delta=1e-12))


def test_more_cut_responses_than_allowed_stop_the_job_before_it_learns(make_run: MakeRun) -> None:
    job = make_run("cut", max_new_tokens=2, max_unended_share=0.1)
    with pytest.raises(DataError, match=r"of the sampled responses are cut at max_new_tokens 2"):
        run_here(job)
    # They were not even rated.
    assert not (job.path / "ratings.safetensors").exists()
    has_ended = torch.tensor([[True, True], [True, False]])
    check_ended(has_ended, SteerLM2Config(max_unended_share=0.25))
    with pytest.raises(DataError, match=r"25\.0% of the sampled .* more than .* \(24\.0%\)"):
        check_ended(has_ended, SteerLM2Config(max_unended_share=0.24))


def test_a_model_that_is_asked_for_nothing_is_refused(
    make_run: MakeRun, models: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(models["model"], tmp_path / "plain")
    (tmp_path / "plain" / "steerlm.json").unlink()
    folder = make_run("job")
    change_job(folder, model=str(tmp_path / "plain"))
    with pytest.raises(DataError, match="no model of SteerLM"):
        run_here(folder)


def test_an_attribute_that_nobody_rates_is_refused(
    make_run: MakeRun, models: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(models["model"], tmp_path / "other")
    Steering({"quality": 4, "violence": 0}).save(tmp_path / "other")
    folder = make_run("job")
    change_job(folder, model=str(tmp_path / "other"))
    with pytest.raises(DataError, match="'violence', which the attribute model doesn't rate"):
        run_here(folder)


def test_an_attribute_model_with_another_tokenizer_is_refused(
    make_run: MakeRun, models: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(models["attribute_model"], tmp_path / "other")
    path = tmp_path / "other" / "chat_template.jinja"
    path.write_text(path.read_text().replace("assistant", "helper"))
    folder = make_run("job")
    change_job(folder, attribute_model=str(tmp_path / "other"))
    with pytest.raises(ConfigError, match="attribute_model"):
        run_here(folder)


def test_a_checkpoint_can_be_exported(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run("job", max_steps=2)
    run_here(folder)
    target, _ = export_checkpoint(folder, 1, tmp_path / "export")
    assert Steering.load(target.output) == Steering(WANTED)
    assert exported(target).keys() == exported(folder).keys()
