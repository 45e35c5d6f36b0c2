"""The three stages as real jobs on a tiny model: they learn, resume exactly, and spread out."""

import json
import math
import multiprocessing
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from job_runs import (
    WORDS,
    assert_same_end,
    export_checkpoint,
    exported,
    lines,
    make_job,
    run_here,
    run_in_two_processes,
    start,
    wait_for_step,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignflow.data_validation.canonical import SCHEMAS
from alignflow.errors import ConfigError, DataError
from alignflow.jobs.run_folder import RunFolder
from alignflow.jobs.spec import FailureKind, JobResult
from alignflow.training.__main__ import train
from alignflow.training.attributes import AttributeScale
from alignflow.training.chat import ChatTokenizer
from alignflow.training.config import RewardModelConfig
from alignflow.training.data import PREFERENCES, load_rows
from alignflow.training.errors import (
    DivergedError,
    ReferenceMismatchError,
    RewardHackingError,
    ScoreMismatchError,
)
from alignflow.training.megatron.judges import AttributeModel
from alignflow.training.megatron.run import build_run
from alignflow.training.packing import pack
from alignflow.training.steps import Metrics

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("one_thread")]

KINDS = {
    "sft": "sft",
    "reward_model": "preference",
    "dpo": "preference",
    "attribute_model": "steerlm",
}
STAGE = {
    "precision": "fp32",
    "learning_rate": 2e-3,
    "global_batch_size": 8,
    "microbatch_tokens": 128,
    "num_epochs": 2,
    "checkpoint_every_steps": 4,
}


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Demonstrations that answer "yes: …", pairs that prefer it to "no! …", and both judged."""
    rng = random.Random(0)

    def say(least: int, most: int) -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(least, most)))

    def demonstration() -> dict[str, Any]:
        question = {"role": "user", "content": say(2, 8)}
        return {"messages": [question, {"role": "assistant", "content": "yes: " + say(1, 12)}]}

    def pair() -> dict[str, Any]:
        prompt = [{"role": "user", "content": say(2, 8)}]
        answers = {"chosen": f"yes: {say(1, 12)}", "rejected": f"no! {say(1, 12)}"}
        scores = {"score_chosen": rng.uniform(2, 4), "score_rejected": rng.uniform(0, 2)}
        return {"prompt": prompt, **answers, **scores}

    def judged() -> dict[str, Any]:
        response, label = rng.choice([("yes: ", True), ("no! ", False)])
        prompt = [{"role": "user", "content": say(2, 8)}]
        return {"prompt": prompt, "response": response + say(1, 12), "label": label}

    def rated() -> dict[str, Any]:
        """A "yes" is good, a "no" is bad, and not every row has its toxicity rated."""
        is_good = rng.random() < 0.5
        answer = f"{'yes:' if is_good else 'no!'} {say(1, 12)}"
        messages = [
            {"role": "user", "content": say(2, 8)},
            {"role": "assistant", "content": answer},
        ]
        toxicity = {} if rng.random() < 0.3 else {"toxicity": 0 if is_good else 3}
        return {"messages": messages, "attributes": {"quality": 4 if is_good else 0, **toxicity}}

    makers = {"sft": demonstration, "preference": pair, "unpaired": judged, "steerlm": rated}
    folders = {}
    for kind, make in makers.items():
        folders[kind] = tmp_path_factory.mktemp(kind)
        (folders[kind] / "card.json").write_text("{}")
        for split, num_rows in (("train", 43), ("held_out", 9)):
            write_split(folders[kind], split, kind, [make() for _ in range(num_rows)])
    return folders


def write_split(folder: Path, split: str, kind: str, rows: list[dict[str, Any]]) -> None:
    (folder / split).mkdir()
    table = [{"id": f"{split}-{i}", **row} for i, row in enumerate(rows)]
    shard = folder / split / "part-00000.parquet"
    pq.write_table(pa.Table.from_pylist(table, schema=SCHEMAS[kind]), shard)


MakeRun = Callable[..., RunFolder]


@pytest.fixture
def make_run(tmp_path: Path, tiny_model: Path, datasets: dict[str, Path]) -> MakeRun:
    """Makes a run folder with its job: `make_run(name, stage, processes=1, model=…, **config)`."""

    def make(
        name: str,
        stage: str,
        *,
        processes: int = 1,
        model: Path = tiny_model,
        data: str | None = None,
        dataset: Path | None = None,
        **config: Any,
    ) -> RunFolder:
        job = {
            "stage": {**STAGE, "stage": stage, **config},
            "model": str(model),
            "dataset": str(dataset or datasets[data or KINDS[stage]]),
        }
        return make_job(tmp_path / name, job, processes=processes)

    return make


def losses(folder: RunFolder) -> list[float]:
    """The loss of each step; of a step that was done twice, the later one."""
    by_step = curve(folder, "loss")
    assert list(by_step) == list(range(1, len(by_step) + 1))
    return list(by_step.values())


def curve(folder: RunFolder, name: str, phase: str = "train") -> dict[int, float]:
    """A metric by its step; of a step that was done twice, the later one."""
    rows = folder.metric_reader().read_new()
    stage = folder.read_spec().config["stage"]["stage"]
    return {row["step"]: row[f"{stage}/{name}"] for row in rows if row["phase"] == phase}


def assert_equal_runs(
    folder: RunFolder, result: JobResult, other: RunFolder, of: JobResult
) -> None:
    validated = (curve(at, "held_out_loss", "validate") for at in (folder, other))
    assert next(validated) == next(validated)
    assert result.metrics == of.metrics
    assert result.details["tokens_processed"] == of.details["tokens_processed"] > 0
    assert_same_end(folder, other)


def test_each_stage_learns_and_the_next_one_starts_from_it(make_run: MakeRun) -> None:
    sft = make_run("sft", "sft")
    metrics = run_here(sft).metrics
    assert metrics["sft/loss"] < metrics["sft/loss_first"] - 0.5
    assert metrics["sft/held_out_loss"] < metrics["sft/held_out_loss_first"] - 0.5
    model = AutoModelForCausalLM.from_pretrained(sft.output)
    assert model(torch.arange(5)[None]).logits.isfinite().all()
    # A Llama ends texts with token 2 unless told otherwise; this one was taught another end.
    end = AutoTokenizer.from_pretrained(sft.output).convert_tokens_to_ids("<|im_end|>")
    assert model.config.eos_token_id == model.generation_config.eos_token_id == [2, end]

    reward = make_run("reward", "reward_model", model=sft.output)
    result = run_here(reward)
    assert result.metrics["reward_model/held_out_accuracy"] == 1
    scale = json.loads((reward.output / "reward_scale.json").read_text())
    assert scale == result.details["reward_scale"]
    assert scale["num_responses"] == 18
    # "yes" and "no" are far apart, in equal numbers.
    assert scale["std"] == pytest.approx(
        result.metrics["reward_model/held_out_margin"] / 2, rel=0.2
    )

    dpo = make_run("dpo", "dpo", model=sft.output)
    metrics = run_here(dpo).metrics
    assert metrics["dpo/loss_first"] == pytest.approx(math.log(2), abs=1e-5)
    assert metrics["dpo/held_out_loss_first"] == pytest.approx(math.log(2), abs=1e-5)
    assert metrics["dpo/held_out_accuracy"] == 1
    assert metrics["dpo/chosen_reward"] > metrics["dpo/rejected_reward"]


def test_each_stage_learns_by_adapters(make_run: MakeRun) -> None:
    lora = {"lora": {"rank": 4, "alpha": 8}, "learning_rate": 3e-2}
    sft = make_run("sft", "sft", **lora)
    metrics = run_here(sft).metrics
    assert metrics["sft/held_out_loss"] < metrics["sft/held_out_loss_first"] - 0.3

    gentle = {**lora, "learning_rate": 1e-2, "num_epochs": 8}
    reward = make_run("reward", "reward_model", model=sft.output, **gentle)
    assert run_here(reward).metrics["reward_model/held_out_accuracy"] == 1

    dpo = make_run("dpo", "dpo", model=sft.output, **gentle)
    metrics = run_here(dpo).metrics
    assert metrics["dpo/loss_first"] == pytest.approx(math.log(2), abs=1e-5)
    assert metrics["dpo/held_out_accuracy"] == 1
    # The merged model differs from its parent by the adapters beside it, and by nothing else.
    (adapters,) = (load_file(file) for file in dpo.output.glob("adapter/*.safetensors"))
    before, after = exported(sft), exported(dpo)
    for name, weight in after.items():
        key = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{key}.lora_A.weight" in adapters:
            a, b = adapters[f"{key}.lora_A.weight"], adapters[f"{key}.lora_B.weight"]
            torch.testing.assert_close(weight, before[name] + 8 / 4 * b @ a)
            assert not torch.equal(weight, before[name])
        else:
            assert torch.equal(weight, before[name]), name


@pytest.mark.parametrize(
    ("data", "options", "expected"),
    [
        ("preference", {"loss": "sigmoid", "label_smoothing": 0.1}, math.log(2)),
        ("preference", {"loss": "ipo", "beta": 0.5}, 1.0),
        ("preference", {"loss": "rpo_sq"}, None),
        ("preference", {"loss": "rpo_fwd_kl"}, None),
        ("preference", {"loss": "rpo_bwd_kl"}, None),
        ("preference", {"loss": "kto"}, 0.5),
        ("unpaired", {"loss": "kto", "undesirable_weight": 1.5}, None),
    ],
)
def test_every_loss_of_the_family_learns_from_its_data(
    make_run: MakeRun, data: str, options: dict[str, Any], expected: float | None
) -> None:
    metrics = run_here(
        make_run("dpo", "dpo", data=data, sft_weight=0.1, checkpoint_every_steps=99, **options)
    ).metrics
    if expected is not None:
        assert metrics["dpo/preference_loss_first"] == pytest.approx(expected, abs=1e-5)
    assert metrics["dpo/held_out_accuracy"] == 1
    assert metrics["dpo/held_out_margin"] > metrics["dpo/held_out_margin_first"] + 0.2
    assert metrics["dpo/held_out_sft_loss"] < metrics["dpo/held_out_sft_loss_first"] - 0.2
    if options["loss"] == "kto":
        assert metrics["dpo/kl_first"] == metrics["dpo/held_out_kl_first"] == 0
        assert metrics["dpo/held_out_kl"] > 0


def test_a_score_does_not_depend_on_the_place_in_the_pair(
    tiny_model: Path, datasets: dict[str, Path], tmp_path: Path
) -> None:
    config = RewardModelConfig.model_validate({**STAGE, "stage": "reward_model"})
    pairs = load_rows(
        datasets["preference"],
        "held_out",
        PREFERENCES,
        model=tiny_model,
        max_length=config.max_length,
        cache=tmp_path,
        is_writer=True,
    )
    rows = replace(pairs, rows_per_item=1)
    in_order = np.arange(rows.num_rows)
    swapped = in_order ^ 1  # 1 0 3 2 ...
    run = build_run(config, tiny_model, head="reward", num_steps=1)
    try:
        scores, scores_swapped = run.forward([pack(rows, in_order), pack(rows, swapped)])
    finally:
        run.close()
    torch.testing.assert_close(scores_swapped[swapped], scores)
    assert scores.std() > 0


def test_a_margin_is_asked_for_and_scores_stay_near_zero(make_run: MakeRun) -> None:
    plain = run_here(make_run("plain", "reward_model", max_steps=1)).metrics
    asked = make_run("asked", "reward_model", margin_scale=0.5, centering=0.05)
    metrics = run_here(asked).metrics
    # Scores of 2 apart, in the mean, ask for a margin of 1, which a fresh head knows nothing of.
    shift = metrics["reward_model/held_out_loss_first"] - plain["reward_model/held_out_loss_first"]
    assert shift > 0.3
    assert metrics["reward_model/held_out_loss"] < metrics["reward_model/held_out_loss_first"] - 0.1
    assert abs(metrics["reward_model/held_out_center"]) < 0.2


def test_a_pair_without_scores_has_no_margin_and_is_refused(
    make_run: MakeRun, datasets: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "unscored"
    shutil.copytree(datasets["preference"], folder)
    shard = folder / "train" / "part-00000.parquet"
    rows = pq.read_table(shard).to_pylist()
    rows[3]["score_rejected"] = None
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMAS["preference"]), shard)
    refused = [{"id": "train-3", "reason": "no_scores"}]
    for margin_scale in (1.0, 0.0):
        run = make_run(
            f"run-{margin_scale:.0f}",
            "reward_model",
            dataset=folder,
            margin_scale=margin_scale,
            max_steps=1,
        )
        assert run_here(run).details["refused_rows"] == (refused if margin_scale else [])


def test_scores_that_know_the_other_answer_stop_the_job(make_run: MakeRun) -> None:
    reward = make_run("reward", "reward_model", max_steps=1)
    metrics = run_here(reward).metrics
    assert metrics["reward_model/loss_first"] > 0
    # One token more than they do share: a rejected answer begins with the chosen one's word.
    shared = reward.path / "tokens/train/shared.npy"
    np.save(shared, np.load(shared) + 1)
    with pytest.raises(ScoreMismatchError, match="where each answer is scored by itself"):
        run_here(make_run("reward", "reward_model", max_steps=1))


def test_an_attribute_model_learns_ratings_from_their_means(make_run: MakeRun) -> None:
    sft = make_run("sft", "sft")
    run_here(sft)
    folder = make_run(
        "attributes", "attribute_model", model=sft.output, num_epochs=6, learning_rate=5e-3
    )
    result = run_here(folder)
    first, last = (result.metrics[f"attribute_model/held_out_loss{end}"] for end in ("_first", ""))
    # A new head predicts the means, and so begins at the variance of the ratings.
    assert first == pytest.approx(result.metrics["attribute_model/held_out_variance_first"])
    assert last < first / 4
    quality = result.details["attributes"]["quality"]
    assert quality["num_held_out"] == 9
    assert quality["held_out_error"] < 0.7 < 1.5 < quality["held_out_error_of_mean"]
    scale = AttributeScale.load(folder.output)
    assert scale.names == ("quality", "toxicity")
    assert scale.means == tuple(result.details["attributes"][name]["mean"] for name in scale.names)

    # What was exported rates as what was trained does.
    model = AttributeModel.load(folder.output, precision="fp32")
    words = {"good": "yes: red house", "bad": "no! red house"}
    chat = ChatTokenizer.load(folder.output)
    question = {"role": "user", "content": "blue river"}
    rows = [
        chat.tokenize([chat.render([question, {"role": "assistant", "content": text}])])[0]
        for text in words.values()
    ]
    good, bad = model.rate([row.tokens_T.tolist() for row in rows], max_tokens=64)
    assert good[0] > 3 > 1 > bad[0]
    assert good[1] < 1 < 2 < bad[1]
    with pytest.raises(DataError, match="an attribute model already"):
        run_here(make_run("again", "attribute_model", model=folder.output))


@pytest.mark.parametrize("stage", ["reward_model", "attribute_model"])
def test_heads_of_scores_pass_their_first_step_and_resume_in_bf16(
    make_run: MakeRun, stage: str
) -> None:
    folder = make_run("run", stage, precision="bf16", max_steps=6)
    whole, losses_of_whole, weights = run_here(folder), losses(folder), exported(folder)
    assert {tensor.dtype for name, tensor in weights.items() if name == "weight"} == {torch.float32}
    # The checkpoint of step 4 is the newest: the last two steps are done again.
    again = make_run("run", stage, precision="bf16", max_steps=6)
    assert run_here(again).metrics == whole.metrics
    assert losses(again) == losses_of_whole
    for name, tensor in exported(again).items():
        assert torch.equal(tensor, weights[name]), name


def test_a_checkpoint_of_an_attribute_model_is_exported_with_its_scale(
    make_run: MakeRun, tmp_path: Path
) -> None:
    trained = make_run("trained", "attribute_model", max_steps=5)
    run_here(trained)
    target, result = export_checkpoint(trained, 4, tmp_path / "export")
    assert result.metrics == {"export/step": 4}
    scale = AttributeScale.load(trained.output)
    assert AttributeModel.load(target.output, precision="fp32").scale == scale


def test_a_small_set_is_said_to_be_one(make_run: MakeRun) -> None:
    folder = make_run("sft", "sft", global_batch_size=64, max_length=24)
    details = run_here(folder).details
    assert f"holds {details['num_rows']} items" in details["note"]
    assert len(losses(folder)) == 2
    refused = {row["reason"] for row in details["refused_rows"]}
    assert refused == {"response_cut_away"}
    assert details["num_rows"] + details["num_held_out_rows"] + details["num_refused"] == 52
    assert details["num_truncated"] > 0


def test_a_killed_job_resumes_to_the_same_end(make_run: MakeRun) -> None:
    killed, undisturbed = make_run("killed", "dpo"), make_run("undisturbed", "dpo")
    with start(killed) as process:
        wait_for_step(killed, 6)
        process.kill()
    assert (killed.checkpoints / "step-00000004/complete").exists()
    # What the first attempt found out about the reference is not asked of the trained policy.
    reference = (killed.path / "reference.safetensors").stat().st_mtime_ns
    result = run_here(killed)
    assert (killed.path / "reference.safetensors").stat().st_mtime_ns == reference
    assert_equal_runs(killed, result, undisturbed, run_here(undisturbed))


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "reward_model", "dpo"])
def test_a_job_killed_again_and_again_comes_to_the_same_end(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    config = {"checkpoint_every_steps": 1, "validate_every_steps": 3, "restore_best": True}
    killed, undisturbed = (make_run(name, stage, **config) for name in ("killed", "undisturbed"))
    expected = run_here(undisturbed)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    # Each attempt is a fork of a process that has imported everything.
    attempts = multiprocessing.get_context("forkserver")
    attempts.set_forkserver_preload([f"alignflow.training.stages.{stage}"])
    moments = random.Random(stage)
    num_cut_short = num_killed = 0
    while num_killed < 10:
        cut_short, num_bytes = unfinished(killed), size_of(killed.metrics)
        attempt = attempts.Process(target=train, args=(killed, killed.read_spec()))
        attempt.start()
        if num_killed % 2:
            while attempt.is_alive() and unfinished(killed) <= cut_short:
                time.sleep(0.001)
        else:
            while attempt.is_alive() and size_of(killed.metrics) == num_bytes:
                time.sleep(0.001)
            time.sleep(moments.uniform(0, 0.4))
        attempt.kill()
        attempt.join()
        if attempt.exitcode == 0:
            break
        num_killed += 1
        num_cut_short += bool(unfinished(killed))
    assert num_killed >= 3
    assert num_cut_short >= 2
    assert_equal_runs(killed, run_here(killed), undisturbed, expected)


def test_a_damaged_checkpoint_is_passed_over(make_run: MakeRun) -> None:
    damaged, undisturbed = (
        make_run(name, "dpo", checkpoint_every_steps=1) for name in ("damaged", "undisturbed")
    )
    expected = run_here(undisturbed)
    run_here(damaged)
    before, newest = sorted(damaged.checkpoints.glob("step-*"))
    weights = max(newest.iterdir(), key=size_of)
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(bytes(content))
    result = run_here(damaged)
    taken = [line["step"] for line in lines(damaged, "train")]
    # The last two steps again, not one alone from what is damaged, nor all of them.
    assert taken[-2:] == taken[-4:-2]
    assert taken[-2] == int(before.name.removeprefix("step-")) + 1
    assert_equal_runs(damaged, result, undisturbed, expected)


def unfinished(folder: RunFolder) -> set[tuple[str, int]]:
    """Checkpoints that were begun and don't count, by name and the time of the last change."""
    return {
        (path.name, path.stat().st_mtime_ns)
        for path in folder.checkpoints.glob("step-*")
        if not (path / "complete").exists()
    }


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def test_a_stopped_job_saves_and_resumes_to_the_same_end(make_run: MakeRun) -> None:
    stopped, undisturbed = make_run("stopped", "sft"), make_run("undisturbed", "sft")
    with start(stopped) as process:
        wait_for_step(stopped, 6)
        process.terminate()
    failure = stopped.read_failure()
    assert failure is not None
    assert failure.kind == FailureKind.CANCELLED
    done = len(losses(stopped))
    assert 6 <= done < 12
    assert (stopped.checkpoints / f"step-{done:08d}/complete").exists()
    assert_equal_runs(stopped, run_here(stopped), undisturbed, run_here(undisturbed))


def test_dpo_starts_at_ln_2_in_bf16_too(make_run: MakeRun) -> None:
    metrics = run_here(make_run("dpo", "dpo", precision="bf16", max_steps=1)).metrics
    assert metrics["dpo/loss_first"] == pytest.approx(math.log(2), abs=1e-3)


def test_a_loss_past_the_bound_stops_the_job(make_run: MakeRun) -> None:
    with pytest.raises(DivergedError, match=r"Step 1: The loss is 5\.\d+, past max_loss 0\.5"):
        run_here(make_run("run", "sft", max_loss=0.5))


def test_training_ends_early_with_the_best_model(make_run: MakeRun) -> None:
    early = {"num_epochs": 9, "validate_every_steps": 2, "early_stop_patience": 2}
    config = {**early, "learning_rate": 2e-2, "restore_best": True, "checkpoint_every_steps": 50}
    stopped, undisturbed = make_run("stopped", "sft", **config), make_run("whole", "sft", **config)
    with start(stopped) as process:
        wait_for_step(stopped, 3)
        process.terminate()
    result = run_here(undisturbed)
    assert_equal_runs(stopped, run_here(stopped), undisturbed, result)

    held_out = curve(undisturbed, "held_out_loss", "validate")
    best = min((step for step in held_out if step), key=lambda step: held_out[step])
    assert len(losses(undisturbed)) == max(held_out) == best + 4 < 54
    assert held_out[best] < held_out[best + 2]
    assert result.metrics["sft/best_step"] == best
    assert result.metrics["sft/held_out_loss"] == held_out[best]
    assert (undisturbed.checkpoints / f"step-{best:08d}/complete").exists()
    again = run_here(make_run("again", "sft", model=undisturbed.output, max_steps=1))
    assert again.metrics["sft/held_out_loss_first"] == pytest.approx(held_out[best], abs=1e-5)


def test_a_gradient_past_the_bound_stops_the_job_and_names_what_is_good(make_run: MakeRun) -> None:
    config = {"max_steps": 6, "checkpoint_every_steps": 2}
    run_here(make_run("run", "sft", **config))
    again = make_run("run", "sft", **config, max_grad_norm=1e-3)
    with pytest.raises(
        DivergedError, match=r"Step 5: The gradient norm is \d.*, past max_grad_norm 0\.001; .*"
    ) as caught:
        run_here(again)
    # The model of step 4 is the one that has this gradient.
    good = again.checkpoints / "step-00000002"
    assert str(caught.value).endswith(f"The last good checkpoint is {good}.")


def test_a_reward_that_grows_while_accuracy_falls_stops_the_job(
    make_run: MakeRun, datasets: dict[str, Path], tmp_path: Path
) -> None:
    # What is learnt, yes over no, makes the margin of three held-out pairs large and turns the
    # other four round: on average it grows, though fewer pairs are right than before training.
    yes, no = "yes: " * 8, "no! " * 8
    prompt = [{"role": "user", "content": "red"}]
    right = {"prompt": prompt, "chosen": yes, "rejected": no}
    wrong = {"prompt": prompt, "chosen": "no! warm", "rejected": "yes: warm"}
    dataset = tmp_path / "pairs"
    dataset.mkdir()
    (dataset / "card.json").write_text("{}")
    (dataset / "train").symlink_to(datasets["preference"] / "train")
    write_split(dataset, "held_out", "preference", [right] * 3 + [wrong] * 4)
    hacked = make_run(
        *("hacked", "dpo"),
        dataset=dataset,
        validate_every_steps=2,
        checkpoint_every_steps=2,
        max_accuracy_drop=0.05,
        accuracy_drop_validations=2,
    )
    with pytest.raises(RewardHackingError, match=r"accuracy fell from 0\.5 to 0\.4286") as caught:
        run_here(hacked)
    assert caught.value.kind is FailureKind.REWARD_HACKING
    assert str(caught.value).endswith("No checkpoint is from before it.")
    assert len(losses(hacked)) < 12


def test_a_checkpoint_of_another_config_is_not_gone_on_from(make_run: MakeRun) -> None:
    run_here(make_run("run", "sft", num_epochs=1))
    with pytest.raises(
        ConfigError, match=r"made with learning_rate 0\.002, the job now has 0\.001"
    ):
        run_here(make_run("run", "sft", num_epochs=1, learning_rate=1e-3))


def test_a_reference_that_is_not_the_policy_stops_the_job(make_run: MakeRun) -> None:
    dpo = make_run("dpo", "dpo", num_epochs=1, max_steps=1)
    run_here(dpo)
    path = dpo.path / "reference.safetensors"
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file({name: 2 * logps for name, logps in load_file(path).items()}, path, metadata)
    with pytest.raises(ReferenceMismatchError, match=r"not 0\.693147: policy and reference d"):
        run_here(make_run("dpo", "dpo", num_epochs=1, max_steps=1))


def test_a_reference_of_another_model_is_made_anew(make_run: MakeRun) -> None:
    first = make_run("first", "sft", num_epochs=1)
    run_here(first)
    run_here(make_run("dpo", "dpo", num_epochs=1, max_steps=1))
    changed = make_run("dpo", "dpo", model=first.output, num_epochs=1, max_steps=1)
    assert run_here(changed).metrics["dpo/loss_first"] == pytest.approx(math.log(2), abs=1e-5)


def test_two_processes_give_the_losses_of_one(make_run: MakeRun, tmp_path: Path) -> None:
    layouts = {
        "tp": {"tensor_model_parallel_size": 2},
        "pp": {"pipeline_model_parallel_size": 2},
        "dp": {"data_parallel_size": 2},
        "sp": {"tensor_model_parallel_size": 2, "sequence_parallel": True},
        "cp": {"context_parallel_size": 2},
    }
    runs: dict[str, dict[str, Any]] = {
        "sft": {"stage": "sft"},
        "dpo": {"stage": "dpo"},
        "kto": {"stage": "dpo", "loss": "kto", "data": "unpaired"},
        "attributes": {"stage": "attribute_model"},
    }
    expected: dict[str, tuple[list[float], Metrics]] = {}
    folders: dict[tuple[str, str], RunFolder] = {}
    for kind, config in runs.items():
        one = make_run(f"one-{kind}", num_epochs=1, **config)
        metrics = run_here(one).metrics
        expected[kind] = (losses(one), metrics)
        # Goes on from the fourth step of one process over two.
        shutil.copytree(one.path, tmp_path / f"moved-{kind}")
        # What KTO adds, a mean over the global batch, only data-parallel ranks could get wrong.
        spread = {"dp": layouts["dp"]} if kind == "kto" else {**layouts, "moved": layouts["tp"]}
        for name, layout in spread.items():
            folders[kind, name] = make_run(
                f"{name}-{kind}", processes=2, num_epochs=1, parallel=layout, **config
            )
    assert expected["kto"][1]["dpo/held_out_kl"] > 0.01
    run_in_two_processes(*folders.values())
    for (kind, name), folder in folders.items():
        result = folder.read_result()
        assert result is not None
        assert losses(folder) == pytest.approx(expected[kind][0], abs=1e-4), name
        for metric in ("loss_first", "held_out_loss"):
            metric = f"{runs[kind]['stage']}/{metric}"
            expected_value = expected[kind][1][metric]
            assert result.metrics[metric] == pytest.approx(expected_value, abs=1e-4), name
        done = [line["step"] for line in lines(folder, "train")]
        assert done == [*range(1, 7), *([5, 6] if name == "moved" else [])], name
