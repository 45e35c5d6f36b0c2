"""PPO, REINFORCE and GRPO as real jobs on a tiny model."""

import json
import random
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
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
    run_worker,
    start,
    steps,
    wait_for_step,
)
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from alignflow.data_validation.canonical import SCHEMAS
from alignflow.errors import ConfigError
from alignflow.jobs import worker
from alignflow.jobs.run_folder import RunFolder
from alignflow.jobs.spec import FailureKind
from alignflow.jobs.worker import JobStoppedError
from alignflow.training import rollout
from alignflow.training.config import PPOConfig
from alignflow.training.errors import KLBoundError, RewardHackingError, SamplerMismatchError

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("one_thread")]

STAGE = {
    "precision": "fp32",
    "max_length": 64,
    "learning_rate": 1e-3,
    "microbatch_tokens": 128,
}
PPO: dict[str, Any] = {
    **STAGE,
    "stage": "ppo",
    "estimator": {"name": "gae", "critic_learning_rate": 1e-3},
    "rollout_prompts": 12,
    "global_batch_size": 6,
    "ppo_epochs": 2,
    "max_new_tokens": 12,
    "generation_tokens": 256,
    "max_validation_rows": 4,
    "checkpoint_every_steps": 1,
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs that prefer an answer "yes …" to "no! …"; some prompts come twice."""
    rng = random.Random(0)

    def say(least: int, most: int) -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(least, most)))

    folder = tmp_path_factory.mktemp("preference")
    (folder / "card.json").write_text("{}")
    for split, num_rows in (("train", 40), ("held_out", 6)):
        prompts = [say(2, 6) for _ in range(num_rows - 4)]
        rows = [
            {
                "id": f"{split}-{number}",
                "prompt": [{"role": "user", "content": prompt}],
                "chosen": f"yes {say(1, 6)}",
                "rejected": f"no! {say(1, 6)}",
            }
            for number, prompt in enumerate([*prompts, *prompts[:4]])
        ]
        (folder / split).mkdir()
        shard = folder / split / "part-00000.parquet"
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMAS["preference"]), shard)
    return folder


@pytest.fixture(scope="module")
def reward_model(tiny_model: Path, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model that tells "yes" from "no!"."""
    stage = {**STAGE, "stage": "reward_model", "global_batch_size": 8, "num_epochs": 3}
    config = {"stage": stage, "model": str(tiny_model), "dataset": str(dataset)}
    folder = make_job(tmp_path_factory.mktemp("jobs") / "reward", config)
    run_here(folder)
    return folder.output


MakeRun = Callable[..., RunFolder]


@pytest.fixture
def make_run(tmp_path: Path, tiny_model: Path, dataset: Path, reward_model: Path) -> MakeRun:
    """Makes a run folder with its job: `make_run(name, processes=1, **config)`."""

    def make(name: str, *, processes: int = 1, **config: Any) -> RunFolder:
        job = {
            "stage": {**PPO, **config},
            "model": str(tiny_model),
            "dataset": str(dataset),
            "reward_model": str(reward_model),
        }
        return make_job(tmp_path / name, job, processes=processes)

    return make


def test_a_job_trains_actor_and_critic(make_run: MakeRun, tiny_model: Path) -> None:
    folder = make_run("job", validate_every_steps=2)
    result = run_here(folder)
    # 40 pairs have 36 prompts, 12 a rollout.
    rollouts = steps(folder)
    assert len(rollouts) == 3
    assert result.details["num_repeated_prompts"] == 4
    # Every rollout is learnt from by the policy that sampled it, and the first by the reference.
    assert [rollout["ppo/start_ratio"] for rollout in rollouts] == [1.0] * 3
    assert rollouts[0]["ppo/kl_nats"] == 0
    assert rollouts[1]["ppo/kl_nats"] != 0
    assert all(rollout["ppo/sampler_delta"] < 1e-5 for rollout in rollouts)
    assert rollouts[2]["ppo/value_loss"] < rollouts[0]["ppo/value_loss"]
    assert {"ppo/held_out_reward", "ppo/held_out_reward_first"} <= result.metrics.keys()
    assert [line["step"] for line in lines(folder, "validate")] == [0, 2, 3]
    assert result.details["tokens_processed"] > 0
    before, after = load_file(tiny_model / "model.safetensors"), exported(folder)
    assert before.keys() == after.keys()
    assert any(not torch.equal(tensor, after[name]) for name, tensor in before.items())
    model = AutoModelForCausalLM.from_pretrained(folder.output)
    assert model(torch.arange(5)[None]).logits.isfinite().all()


def test_a_critic_warms_up_before_the_actor_moves(make_run: MakeRun) -> None:
    estimator = {**PPO["estimator"], "critic_warmup_steps": 1}
    folder = make_run("job", estimator=estimator, max_steps=2)
    run_here(folder)
    first, second = steps(folder)
    assert "ppo/loss" not in first
    assert "ppo/loss" in second
    assert second["ppo/kl_nats"] == 0
    assert second["ppo/explained_variance"] != first["ppo/explained_variance"]
    with pytest.raises(ConfigError, match="of 2 rollouts 2 leave none"):
        run_here(make_run("late", estimator={**estimator, "critic_warmup_steps": 2}, max_steps=2))


@pytest.mark.parametrize(
    "estimator", [{"name": "rloo"}, {"name": "rloo", "action": "response"}, {"name": "grpo"}]
)
def test_responses_to_a_prompt_are_learnt_from_without_a_critic(
    make_run: MakeRun, estimator: dict[str, str]
) -> None:
    is_grpo = estimator["name"] == "grpo"
    folder = make_run(
        "job",
        estimator=estimator,
        samples_per_prompt=3,
        missing_end_reward=None,
        kl_placement="loss" if is_grpo else "reward",
        kl_estimator="k3" if is_grpo else "k1",
        temperature=0.7,
        top_k=300,
        top_p=0.95,
        max_steps=2,
    )
    run_here(folder)
    rollouts = steps(folder)
    assert all(rollout["ppo/start_ratio"] == 1 for rollout in rollouts)
    assert all(rollout["ppo/sampler_delta"] < 1e-5 for rollout in rollouts)
    assert all("ppo/value_loss" not in rollout for rollout in rollouts)
    assert ("ppo/kl_loss" in rollouts[0]) == is_grpo
    assert rollouts[1]["ppo/kl_k3_nats"] > 0
    assert not any((folder.checkpoints / "step-00000001").glob("critic*"))


def test_with_adapters_the_policy_without_them_is_the_reference(make_run: MakeRun) -> None:
    lora = {"rank": 4, "alpha": 8}
    folder = make_run("lora", lora=lora, max_steps=2)
    result = run_here(folder)
    # Actor, critic and reward model: no copy of the initial policy.
    assert result.details["num_models"] == 3
    first, second = steps(folder)
    assert first["ppo/kl_nats"] == 0
    assert second["ppo/kl_nats"] != 0


@pytest.mark.parametrize("is_compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_invariants_hold_in_bf16_too(make_run: MakeRun, is_compiled: bool) -> None:
    if is_compiled and shutil.which("g++") is None:
        pytest.skip("there is no C++ compiler")
    folder = make_run("job", precision="bf16", max_steps=2, compile=is_compiled)
    run_here(folder)
    first, second = steps(folder)
    assert first["ppo/kl_nats"] == 0
    assert [step["ppo/start_ratio"] for step in (first, second)] == [1, 1]
    assert all(0 < step["ppo/sampler_delta"] < 0.02 for step in (first, second))


@pytest.mark.parametrize(
    "end", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_a_job_that_was_ended_resumes_to_the_same_end(
    make_run: MakeRun, end: signal.Signals
) -> None:
    options = {"kl_adaptation": {"target_nats": 0.5, "horizon": 100}}
    ended, undisturbed = make_run("ended", **options), make_run("undisturbed", **options)
    with start(ended) as process:
        wait_for_step(ended, 2)
        process.send_signal(end)
    failure = ended.read_failure()
    assert (failure is None) == (end == signal.SIGKILL)
    assert failure is None or failure.kind == FailureKind.CANCELLED
    # What a kill leaves of a checkpoint is never gone on from.
    torn = ended.checkpoints / "step-00000003" / "actor"
    shutil.rmtree(torn.parent, ignore_errors=True)
    torn.mkdir(parents=True)
    (torn / "state.json").write_text("{}")
    result, expected = run_here(ended), run_here(undisturbed)
    assert result.metrics == expected.metrics
    assert result.metrics["ppo/kl_coef"] != PPOConfig().kl_coef
    assert result.details["tokens_processed"] == expected.details["tokens_processed"]
    assert_same_end(ended, undisturbed)


@pytest.mark.parametrize("share", [0.1, 0.6])
def test_a_stop_is_heard_within_a_rollout_and_changes_nothing(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    options = {"max_new_tokens": 20, "min_new_tokens": 16, "validate_every_steps": 1}
    stopped, undisturbed = make_run("stopped", **options), make_run("undisturbed", **options)
    asked: list[str] = []
    stop_at = 0

    def ask() -> None:
        asked.append("")
        if len(asked) == stop_at:
            worker._stop.set()
        worker.raise_if_stop_requested()

    monkeypatch.setattr(rollout, "raise_if_stop_requested", ask)
    monkeypatch.setattr(worker, "_stop", threading.Event())
    expected = run_here(undisturbed)
    # Asked while the answers to a few prompts are written, in the first rollout or in a later one.
    stop_at = int(share * len(asked))
    asked.clear()
    with pytest.raises(JobStoppedError, match="after rollout"):
        run_here(stopped)
    assert len(asked) == stop_at
    worker._stop.clear()
    assert run_here(stopped).metrics == expected.metrics
    assert_same_end(stopped, undisturbed)
    measured = [line["step"] for line in lines(undisturbed, "validate")]
    assert measured == [0, 1, 2, 3]
    assert {line["step"] for line in lines(stopped, "validate")} == set(measured)


def test_ranks_leave_a_rollout_together() -> None:
    run_worker("leave_together.py")


def test_two_processes_sample_and_learn_as_one(make_run: MakeRun) -> None:
    options: dict[str, dict[str, Any]] = {
        "gae": {},
        # One prompt an update: one of the ranks always has nothing to learn from.
        "grpo": {
            "estimator": {"name": "grpo"},
            "samples_per_prompt": 2,
            "rollout_prompts": 3,
            "global_batch_size": 1,
            "max_validation_rows": 1,
        },
    }
    expected = {}
    folders = {}
    for name, changes in options.items():
        one = make_run(f"one-{name}", **changes, max_steps=2)
        expected[name] = (one, run_here(one).metrics)
        folders[name] = make_run(
            f"two-{name}",
            processes=2,
            **changes,
            max_steps=2,
            parallel={"data_parallel_size": 2, "use_distributed_optimizer": name == "grpo"},
        )
    run_in_two_processes(*folders.values())
    for name, folder in folders.items():
        one, metrics = expected[name]
        result = folder.read_result()
        assert result is not None
        for found, wanted in zip(steps(folder), steps(one), strict=True):
            assert found == pytest.approx(wanted, rel=1e-3, abs=1e-4), name
        assert result.metrics == pytest.approx(metrics, rel=1e-3, abs=1e-4), name


def test_a_job_past_a_bound_names_the_checkpoint_it_has(make_run: MakeRun) -> None:
    folder = make_run("far", max_kl_nats=1e-4, learning_rate=1e-2)
    with pytest.raises(KLBoundError, match=r"Rollout 2: .*max_kl_nats.*step-00000001\)"):
        run_here(folder)
    with pytest.raises(SamplerMismatchError, match="max_sampler_delta"):
        run_here(make_run("other", max_sampler_delta=1e-12))


def test_a_reward_that_grows_while_people_would_disagree_stops_the_job(
    make_run: MakeRun, dataset: Path, tmp_path: Path
) -> None:
    # The reward model likes "yes"; the held-out pairs are of people who like "no!".
    turned = tmp_path / "turned"
    shutil.copytree(dataset, turned)
    shard = turned / "held_out" / "part-00000.parquet"
    table = pq.read_table(shard)
    names = {"chosen": "rejected", "rejected": "chosen"}
    swapped = table.rename_columns([names.get(name, name) for name in table.column_names])
    pq.write_table(swapped.select(table.column_names), shard)
    free: dict[str, Any] = {"missing_end_reward": None, "kl_coef": 0.0, "max_kl_nats": 1e3}
    folder = make_run(
        "job",
        **free,
        learning_rate=3e-3,
        rollout_prompts=36,
        global_batch_size=12,
        num_epochs=16,
        max_validation_rows=6,
        validate_every_steps=1,
        max_accuracy_drop=0.2,
        accuracy_drop_validations=2,
        checkpoint_every_steps=100,
        keep_checkpoints=1,
    )
    change_job(folder, dataset=str(turned))
    with pytest.raises(RewardHackingError, match="while the reward grew from") as caught:
        run_here(folder)
    assert caught.value.kind is FailureKind.REWARD_HACKING
    seen = lines(folder, "validate")
    best = max(seen, key=lambda line: line["ppo/held_out_accuracy"])
    for line in seen[-2:]:
        assert line["ppo/held_out_accuracy"] < best["ppo/held_out_accuracy"] - 0.2
        assert line["ppo/held_out_reward"] > best["ppo/held_out_reward"]
    good = folder.checkpoints / f"step-{best['step']:08d}"
    assert str(good if best["step"] else "the model that it started from") in str(caught.value)
    assert good.is_dir() == (best["step"] > 0)


def test_a_reward_cannot_be_watched_without_pairs(
    make_run: MakeRun, dataset: Path, tmp_path: Path
) -> None:
    shutil.copytree(dataset, tmp_path / "set")
    shutil.rmtree(tmp_path / "set" / "held_out")
    folder = make_run("job", max_accuracy_drop=0.2, validate_every_steps=1)
    change_job(folder, dataset=str(tmp_path / "set"))
    with pytest.raises(ConfigError, match="goes by held-out pairs, but the dataset has none"):
        run_here(folder)


def test_a_reward_model_with_another_tokenizer_is_refused(
    make_run: MakeRun, reward_model: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(reward_model, other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"] = dict(reversed(tokenizer["model"]["vocab"].items()))
    vocab = tokenizer["model"]["vocab"]
    first, second = list(vocab)[:2]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    folder = make_run("job")
    change_job(folder, reward_model=str(other))
    with pytest.raises(ConfigError, match="differ in their tokenizer"):
        run_here(folder)


@pytest.mark.slow
def test_a_checkpoint_can_be_exported(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run("job", max_steps=2)
    run_here(folder)
    exporting, result = export_checkpoint(folder, 1, tmp_path / "export")
    assert result.metrics == {"export/step": 1.0}
    halfway, final = exported(exporting), exported(folder)
    assert halfway.keys() == final.keys()
    assert any(not torch.equal(tensor, final[name]) for name, tensor in halfway.items())


@pytest.mark.slow
def test_what_is_rewarded_becomes_likelier(
    tiny_model: Path, dataset: Path, reward_model: Path, tmp_path: Path
) -> None:
    rollouts = {"rollout_prompts": 36, "global_batch_size": 12, "num_epochs": 16}
    free = {"missing_end_reward": None, "kl_coef": 0.0, "max_kl_nats": 1e3}
    folder = make_job(
        tmp_path / "job",
        {
            "stage": {**PPO, **rollouts, **free, "learning_rate": 3e-3},
            "model": str(tiny_model),
            "dataset": str(dataset),
            "reward_model": str(reward_model),
        },
    )
    metrics = run_here(folder).metrics
    assert metrics["ppo/reward"] > metrics["ppo/reward_first"] + 0.5
    assert metrics["ppo/held_out_reward"] > metrics["ppo/held_out_reward_first"] + 0.5
