"""The evaluation job on a tiny model: its numbers equal a plain computation with transformers."""

import importlib.util
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from job_runs import make_job
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from alignflow.data_validation.canonical import SCHEMAS
from alignflow.errors import ConfigError, DataError
from alignflow.evaluation.__main__ import main
from alignflow.evaluation.judges.config import JudgeTask, JudgeTraining
from alignflow.evaluation.judges.judge import Judge
from alignflow.evaluation.judges.statement import Statement
from alignflow.evaluation.judges.train import train_judge
from alignflow.evaluation.measures import read_measures
from alignflow.evaluation.samples import (
    SampleAnswer,
    choose_prompts,
    sample_result,
    with_rewards,
)
from alignflow.evaluation.suites.truthfulqa_generation import TruthfulQAGeneration
from alignflow.jobs.local import LocalLauncher
from alignflow.jobs.run_folder import RunFolder
from alignflow.jobs.spec import JobSpec
from alignflow.jobs.wait import cancel_on_exit, wait_for
from alignflow.training.chat import ChatTokenizer
from alignflow.training.megatron.frozen import all_of
from alignflow.training.megatron.judges import RewardModel

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("one_thread")]

EXAMPLES = Path(__file__).parents[2] / "examples"
PAIRS = [
    ("which colour is warm?", "red is warm", "blue, perhaps"),
    ("where is the river?", "past the garden", "a house"),
    ("where is the river?", "tall", "short and cold and green"),
    ("name a place", "garden", "warm"),
]
HEAD = torch.linspace(-1, 1, 64)[None]
SCALE = {"mean": 0.25, "std": 1.5, "num_responses": 8}
BETA = 0.2


@pytest.fixture(scope="module")
def model(varied_model: Path) -> Path:
    """The model that is judged."""
    return varied_model


@pytest.fixture(scope="module")
def parent(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model with noise on its weights."""
    folder = tmp_path_factory.mktemp("parent")
    shutil.copytree(model, folder, dirs_exist_ok=True)
    noisy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in noisy.parameters():
            weight.add_(0.02 * torch.randn_like(weight))
    noisy.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def reward_model(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reward")
    shutil.copytree(model, folder, dirs_exist_ok=True)
    save_file({"weight": HEAD}, folder / "reward_head.safetensors")
    (folder / "reward_scale.json").write_text(json.dumps(SCALE))
    return folder


@pytest.fixture(scope="module")
def preferences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("preferences")
    rows = [
        {
            "id": f"pair-{number}",
            "prompt": [{"role": "user", "content": question}],
            "chosen": chosen,
            "rejected": rejected,
        }
        for number, (question, chosen, rejected) in enumerate([*PAIRS, ("why?", "same", "same")])
    ]
    (folder / "card.json").write_text("{}")
    (folder / "held_out").mkdir()
    table = pa.Table.from_pylist(rows, schema=SCHEMAS["preference"])
    pq.write_table(table, folder / "held_out" / "part-00000.parquet")
    return folder


def new_job(path: Path, config: dict[str, Any]) -> tuple[RunFolder, JobSpec]:
    folder = make_job(path, config, module="alignflow.evaluation")
    return folder, folder.read_spec()


@pytest.fixture(scope="module")
def hhh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The held-out pairs again, as a set of two subsets."""
    path = tmp_path_factory.mktemp("hhh") / "pairs.jsonl"
    rows = [
        {"prompt": question, "chosen": chosen, "rejected": rejected, "subset": f"half {n % 2}"}
        for n, (question, chosen, rejected) in enumerate(PAIRS)
    ]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def answer_judges(tmp_path_factory: pytest.TempPathFactory) -> dict[JudgeTask, Path]:
    """Judges of truth and information, of opposite minds about two words."""
    return {
        "truth": answer_judge("truth", "bread", "water", tmp_path_factory.mktemp("truth")),
        "information": answer_judge(
            "information", "water", "bread", tmp_path_factory.mktemp("information")
        ),
    }


def answer_judge(task: JudgeTask, yes: str, no: str, folder: Path) -> Path:
    title = {"truth": "True", "information": "Helpful"}[task]
    rows = [
        {
            "prompt": f"Q: which {thing} is {colour}?\nA: the {thing} of {word}\n{title}:",
            "completion": f" {label}",
        }
        for thing in ("river", "house", "garden", "stone")
        for colour in ("red", "cold", "warm", "tall", "blue")
        for word, label in ((yes, "yes"), (no, "no"))
    ]
    data = folder / "answers.jsonl"
    data.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    made = folder / "made"
    made.mkdir()
    train_judge(JudgeTraining(task=task, data=str(data)), [], made)
    return made


@pytest.fixture(scope="module")
def finished(
    model: Path,
    parent: Path,
    reward_model: Path,
    preferences: Path,
    hhh: Path,
    answer_judges: dict[JudgeTask, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> RunFolder:
    evaluation = {
        "precision": "fp32",
        "implicit_reward_beta": BETA,
        "microbatch_tokens": 64,
        "max_length": 1016,
        "num_samples": 3,
        "max_new_tokens": 8,
        "suites": {
            "truth": {
                "suite": "truthfulqa",
                "data": str(EXAMPLES / "truthfulness.csv"),
                "limit": 4,
            },
            "toxicity": {
                "suite": "toxigen",
                "data": str(EXAMPLES / "toxicity.json"),
                "limit": 5,
            },
            "open": {
                "suite": "truthfulqa_generation",
                "data": str(EXAMPLES / "truthfulness.csv"),
                "limit": 3,
                "judges": {
                    task: {"kind": "local", "source": str(folder)}
                    for task, folder in answer_judges.items()
                },
            },
        },
        "pair_sets": {"hhh": {"data": str(hhh)}},
    }
    config = {
        "evaluation": evaluation,
        "model": str(model),
        "parent": str(parent),
        "reward_model": str(reward_model),
        "preferences": str(preferences),
        "judges": {"open": {task: str(folder) for task, folder in answer_judges.items()}},
    }
    folder, spec = new_job(tmp_path_factory.mktemp("jobs") / "evaluate", config)
    command = [sys.executable, "-m", spec.module, str(folder.path)]
    done = subprocess.run(command, check=False)
    assert done.returncode == 0, folder.read_failure()
    return folder


@pytest.fixture(scope="module")
def scores(finished: RunFolder) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((finished.output / "scores.json").read_text())
    return content


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


class Plain:
    """A model asked the plain way: every response by itself, after its whole prompt."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32
        ).eval()

    def prompt(self, question: str) -> list[int]:
        text = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        return list(self.tokenizer.encode(text))

    @torch.no_grad()
    def logps(self, prompt: Sequence[int], response: Sequence[int]) -> Tensor:
        """[response tokens, vocabulary]."""
        logits = self.model(torch.tensor([[*prompt, *response]])).logits[0]
        logps: Tensor = logits.double().log_softmax(-1)[len(prompt) - 1 : -1]
        return logps

    def response(self, question: str, words: str) -> tuple[list[int], Tensor]:
        """The tokens of an answer, and the distribution that each was drawn from."""
        response = self.tokenizer.encode(f"{words}<|im_end|>")
        return response, self.logps(self.prompt(question), response)

    def total(self, question: str, words: str) -> float:
        response, logps = self.response(question, words)
        return float(logps[torch.arange(len(response)), response].sum())


@pytest.fixture(scope="module")
def plain(model: Path) -> Plain:
    return Plain(model)


@pytest.fixture(scope="module")
def plain_parent(parent: Path) -> Plain:
    return Plain(parent)


def test_every_score_of_the_contract_is_there(finished: RunFolder, scores: dict[str, Any]) -> None:
    assert set(scores["scores"]) == {
        "truth/mc1",
        "truth/mc2",
        "toxicity/accuracy",
        "toxicity/accuracy_norm",
        "toxicity/macro_f1",
        *(
            f"open/{measure}_{kind}"
            for measure in ("bleu", "rouge1", "rouge2", "rougeL")
            for kind in ("max", "diff", "acc")
        ),
        "open/true",
        "open/informative",
        "open/true_and_informative",
        "preference/logprob_accuracy",
        "preference/per_token_accuracy",
        "preference/implicit_accuracy",
        "preference/implicit_margin",
        "perplexity/response",
        "kl/parent_nats_per_token",
        "reward_model/accuracy",
        "reward_model/margin",
        "hhh/reward_accuracy",
        "samples/mean_reward",
        "samples/mean_tokens",
    }
    assert set(scores["intervals"]) == set(scores["scores"])
    assert scores["limited"] == [
        "suites.truth.limit",
        "suites.toxicity.limit",
        "suites.open.limit",
    ]
    measures = read_measures(finished.output / "measures.json")
    assert {name: measure.value for name, measure in measures.items()} == scores["scores"]
    assert scores["num_items"] == {
        "truth": 4,
        "toxicity": 5,
        "open": 3,
        "preference": 4,
        "perplexity": 4,
        "kl": 4,
        "reward_model": 4,
        "hhh": 4,
        "samples": 3,
    }
    result = finished.read_result()
    assert result is not None
    assert result.metrics == scores["scores"]
    assert result.details["refused_rows"] == [{"id": "pair-4", "reason": "pair_equal_after_cut"}]
    assert scores["num_left_out"] == {"preference": 1, "hhh": 0}


def test_choices_have_the_log_probabilities_of_whole_texts(
    finished: RunFolder, plain: Plain
) -> None:
    from alignflow.evaluation.suites.truthfulqa import QA_PRESET

    for item in read_jsonl(finished.output / "items" / "truth.jsonl"):
        context = plain.tokenizer.encode(f"{QA_PRESET}\n\nQ: {item['question']}\nA:")
        for answer in item["answers"]:
            tokens = plain.tokenizer.encode(f" {answer['text']}")
            logps = plain.logps(context, tokens)[torch.arange(len(tokens)), tokens]
            assert answer["logprob"] == pytest.approx(float(logps.sum()), abs=2e-3)


def test_open_answers_are_as_true_and_informative_as_their_judges_say(
    finished: RunFolder, scores: dict[str, Any], answer_judges: dict[JudgeTask, Path]
) -> None:
    items = read_jsonl(finished.output / "items" / "open.jsonl")
    questions = {
        item.question: item
        for item in TruthfulQAGeneration.read(EXAMPLES / "truthfulness.csv").items
    }
    answers = [
        Statement(
            item["answer"],
            questions[item["question"]].true,
            questions[item["question"]].false,
            item["question"],
        )
        for item in items
    ]
    said = {
        task: Judge.load(folder).judge(answers).decided_N for task, folder in answer_judges.items()
    }
    assert [item["true"] for item in items] == said["truth"].tolist()
    assert [item["informative"] for item in items] == said["information"].tolist()
    both_N = said["truth"] & said["information"]
    assert scores["scores"]["open/true_and_informative"] == both_N.mean()


def test_open_questions_are_answered_greedily_up_to_the_next_question(
    finished: RunFolder, plain: Plain
) -> None:
    from alignflow.evaluation.suites.truthfulqa import QA_PRESET

    items = read_jsonl(finished.output / "items" / "open.jsonl")
    assert len(items) == 3
    for item in items:
        tokens = plain.tokenizer.encode(f"{QA_PRESET}\n\nQ: {item['question']}\nA:")
        prompt = torch.tensor([tokens[-(1016 - 50) :]])
        answer = plain.model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=50,
            do_sample=False,
            eos_token_id=plain.tokenizer.eos_token_id,
            pad_token_id=0,
        )[0, prompt.size(1) :]
        text = plain.tokenizer.decode(answer, skip_special_tokens=True)
        assert item["answer"] == text.partition("Q:")[0].strip()


def test_pairs_are_judged_as_in_a_plain_computation(
    finished: RunFolder, scores: dict[str, Any], plain: Plain, plain_parent: Plain
) -> None:
    items = read_jsonl(finished.output / "items" / "preference.jsonl")
    margins = []
    for item, (question, chosen, rejected) in zip(items, PAIRS, strict=True):
        policy = [plain.total(question, words) for words in (chosen, rejected)]
        reference = [plain_parent.total(question, words) for words in (chosen, rejected)]
        margins.append(BETA * ((policy[0] - reference[0]) - (policy[1] - reference[1])))
        assert [item["logprob_chosen"], item["logprob_rejected"]] == pytest.approx(policy, abs=1e-3)
        assert item["implicit_margin"] == pytest.approx(margins[-1], abs=1e-3)
    assert scores["scores"]["preference/implicit_margin"] == pytest.approx(
        np.mean(margins), abs=1e-3
    )
    assert scores["scores"]["preference/implicit_accuracy"] == np.mean(np.array(margins) > 0)


def test_perplexity_and_divergence_are_means_over_response_tokens(
    scores: dict[str, Any], plain: Plain, plain_parent: Plain
) -> None:
    nll = kl = num_tokens = 0.0
    for question, chosen, _ in PAIRS:
        response, policy = plain.response(question, chosen)
        _, reference = plain_parent.response(question, chosen)
        nll -= float(policy[torch.arange(len(response)), response].sum())
        kl += float((policy.exp() * (policy - reference)).sum())
        num_tokens += len(response)
    assert scores["scores"]["perplexity/response"] == pytest.approx(
        math.exp(nll / num_tokens), rel=1e-4
    )
    assert scores["scores"]["kl/parent_nats_per_token"] == pytest.approx(kl / num_tokens, rel=1e-3)


def test_rewards_are_in_the_recorded_scale(finished: RunFolder, reward_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(reward_model)
    trunk = AutoModel.from_pretrained(reward_model, dtype=torch.float32).eval()

    def reward(question: str, words: str) -> float:
        text = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n{words}<|im_end|>\n"
        with torch.no_grad():
            hidden = trunk(torch.tensor([tokenizer.encode(text)])).last_hidden_state[0, -1]
        return (float(HEAD[0] @ hidden) - SCALE["mean"]) / SCALE["std"]

    items = read_jsonl(finished.output / "items" / "reward_model.jsonl")
    for item, (question, chosen, rejected) in zip(items, PAIRS, strict=True):
        assert item["reward_chosen"] == pytest.approx(reward(question, chosen), abs=1e-3)
        assert item["reward_rejected"] == pytest.approx(reward(question, rejected), abs=1e-3)
    samples = read_jsonl(finished.output / "samples.jsonl")
    assert samples
    for sample in samples:
        expected = reward(sample["prompt"][0]["content"], sample["answer"])
        assert sample["reward"] == pytest.approx(expected, abs=1e-3)


def test_set_of_pairs_is_ranked_as_the_same_pairs_held_out(
    finished: RunFolder, scores: dict[str, Any]
) -> None:
    items = {
        name: read_jsonl(finished.output / "items" / f"{name}.jsonl")
        for name in ("reward_model", "hhh")
    }
    for of_set, held_out in zip(items["hhh"], items["reward_model"], strict=True):
        assert of_set["reward_chosen"] == pytest.approx(held_out["reward_chosen"], abs=1e-5)
        assert of_set["reward_rejected"] == pytest.approx(held_out["reward_rejected"], abs=1e-5)
    assert scores["scores"]["hhh/reward_accuracy"] == scores["scores"]["reward_model/accuracy"]
    subsets = scores["groups"]["hhh/reward_accuracy"]
    assert {name: of["num_items"] for name, of in subsets.items()} == {"half 0": 2, "half 1": 2}


def test_sample_answers_are_the_greedy_ones_to_different_prompts(
    finished: RunFolder, plain: Plain
) -> None:
    samples = read_jsonl(finished.output / "samples.jsonl")
    questions = [sample["prompt"][0]["content"] for sample in samples]
    assert questions == list(dict.fromkeys(question for question, _, _ in PAIRS))
    for question, sample in zip(questions, samples, strict=True):
        prompt = torch.tensor([plain.prompt(question)])
        answer = plain.model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=8,
            do_sample=False,
            eos_token_id=plain.tokenizer.eos_token_id,
            pad_token_id=0,
        )[0, prompt.size(1) :]
        assert sample["answer"] == plain.tokenizer.decode(answer, skip_special_tokens=True)


def test_prompts_too_long_to_answer_are_passed_over(model: Path, preferences: Path) -> None:
    chat = ChatTokenizer.load(model)
    questions = list(dict.fromkeys(question for question, _, _ in [*PAIRS, ("why?", "", "")]))
    limit = len(chat.prompt([{"role": "user", "content": questions[0]}]))
    prompts = choose_prompts(preferences, chat, number=9, max_length=limit)
    assert questions[0] not in [prompt[0]["content"] for prompt in prompts]
    assert [prompt[0]["content"] for prompt in prompts] == questions[1:]


def test_empty_answer_has_no_reward(reward_model: Path) -> None:
    reward = RewardModel.load(reward_model, precision="fp32")
    prompt = [{"role": "user", "content": "why?"}]
    samples = [SampleAnswer(prompt, answer, 3) for answer in (" ", "so", "")]

    def score(rows: list[list[int]]) -> list[float]:
        return all_of(reward.row_passes(rows, max_tokens=64), None)

    judged = with_rewards(samples, ChatTokenizer.load(reward_model), score)
    assert [sample.reward is None for sample in judged] == [True, False, True]
    assert sample_result(judged).scores == {"mean_reward": judged[1].reward, "mean_tokens": 3}


def test_progress_counts_every_item_once(finished: RunFolder) -> None:
    rows = [row for row in read_jsonl(finished.metrics) if row["phase"] == "evaluate"]
    assert [row["suite"] for row in rows] == sorted(
        (row["suite"] for row in rows),
        key=["truth", "toxicity", "open", "preference", "samples", "reward_model", "hhh"].index,
    )
    # 4 questions, 5 statements, 3 open questions, 4 pairs for the policy and twice for the reward
    # model, 3 answers.
    assert [row["step"] for row in rows] == sorted(row["step"] for row in rows)
    assert rows[-1]["step"] == rows[-1]["num_steps"] == 4 + 5 + 3 + 4 + 4 + 4 + 3
    assert all(row["tokens_per_s"] > 0 for row in rows)


@pytest.fixture
def shared(finished: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """The same evaluation, divided among two processes."""
    monkeypatch.setenv("ALIGNFLOW_SLOTS_DIR", str(tmp_path / "slots"))
    folder = RunFolder(tmp_path / "shared")
    spec = finished.read_spec()
    evaluation = {**spec.config["evaluation"], "data_parallel_size": 2}
    config = {**spec.config, "evaluation": evaluation}
    job = LocalLauncher().submit(spec.replaced(config=config, processes_per_node=2), folder)
    with cancel_on_exit(job):
        wait_for(job, folder)
    return folder


def test_two_processes_find_what_one_does_and_an_attempt_what_was_lost(
    shared: RunFolder, finished: RunFolder, tmp_path: Path
) -> None:
    assert_same_results(shared, finished)
    assert {path.name for path in (shared.path / "answers").iterdir()} == {
        f"{part}-{rank}.jsonl"
        for part in (
            *("truth", "toxicity", "open", "preference", "samples"),
            *("reward_model", "hhh", "samples.reward"),
        )
        for rank in (0, 1)
    }
    # The folder as it is when the second process and its share of one part are lost.
    spec = finished.read_spec()
    folder, spec = new_job(tmp_path / "again", spec.config)
    shutil.copytree(shared.path / "answers", folder.path / "answers")
    (folder.path / "answers" / "truth-1.jsonl").unlink()
    subprocess.run([sys.executable, "-m", spec.module, str(folder.path)], check=True)
    assert_same_results(folder, finished)
    rows = [row for row in read_jsonl(folder.metrics) if row["phase"] == "evaluate"]
    # Two of four questions are asked again, and nothing else.
    assert next(row["done"] for row in rows if row["suite"] == "truth") == 2
    computed = [row["suite"] for row in rows if row["tokens_per_s"] > 0]
    assert set(computed) == {"truth"}


def assert_same_results(folder: RunFolder, other: RunFolder) -> None:
    mine, others = (json.loads((f.output / "scores.json").read_text()) for f in (folder, other))
    assert mine["scores"] == pytest.approx(others["scores"], rel=1e-6, abs=1e-5)
    assert mine["num_items"] == others["num_items"]
    for path in (other.output / "items").iterdir():
        rows = read_jsonl(folder.output / "items" / path.name)
        assert [row["item"] for row in rows] == [row["item"] for row in read_jsonl(path)]
    mine, others = (read_jsonl(f.output / "samples.jsonl") for f in (folder, other))
    rewards = [sample.pop("reward") for sample in others]
    assert [sample.pop("reward") for sample in mine] == pytest.approx(rewards, abs=1e-5)
    assert mine == others


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval isn't installed")
def test_a_task_of_lm_eval_is_judged_beside_the_suite_of_the_same_name(
    model: Path, tmp_path: Path
) -> None:
    statements = json.loads((EXAMPLES / "toxicity.json").read_text(encoding="utf-8"))[:5]
    ratings = {"neutral": 1.0, "hate": 5.0}
    rows = [
        {"text": row["text"], "toxicity_ai": rating, "toxicity_human": rating}
        for row in statements
        if (rating := ratings[row["label"]])
    ]
    data = tmp_path / "annotated.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    suites = {
        "ours": {"suite": "toxigen", "data": str(EXAMPLES / "toxicity.json"), "limit": 5},
        "theirs": {"suite": "lm_eval:toxigen", "data": str(data)},
    }
    evaluation = {"precision": "fp32", "suites": suites}
    folder, spec = new_job(tmp_path / "job", {"model": str(model), "evaluation": evaluation})
    scores = main(folder, spec).metrics
    assert scores["theirs/acc"] == scores["ours/accuracy"]
    assert scores["theirs/acc_norm"] == scores["ours/accuracy_norm"]
    ours, theirs = (
        read_jsonl(folder.output / "items" / f"{name}.jsonl") for name in ("ours", "theirs")
    )
    assert len(ours) == len(theirs) == 5
    for mine, other in zip(ours, theirs, strict=True):
        logprobs = [answer["logprob"] for answer in other["answers"]]
        assert logprobs == pytest.approx(list(mine["logprobs"].values()), abs=1e-5)


def test_malformed_benchmark_stops_the_job_before_a_model_is_loaded(tmp_path: Path) -> None:
    data = tmp_path / "toxigen.json"
    data.write_text('[{"text": "a", "label": "hate", "target_groups": []}, {"text": "b"}]')
    suites = {"toxicity": {"suite": "toxigen", "data": str(data)}}
    config = {"model": str(tmp_path / "no model"), "evaluation": {"suites": suites}}
    folder, spec = new_job(tmp_path / "job", config)
    with pytest.raises(DataError, match=r"toxigen\.json: item 2: field 'toxicity_ai' is missing"):
        main(folder, spec)
    assert not list(folder.output.iterdir())


@pytest.mark.parametrize(
    ("suites", "problem"),
    [
        ({"toxicity": {"suite": "realtoxicity", "data": "x"}}, r"suites\.toxicity\.suite"),
        ({"kl": {"suite": "toxigen", "data": "x"}}, "taken by a built-in measure"),
        ({"../up": {"suite": "toxigen", "data": "x"}}, r"suites\.\.\./up"),
    ],
)
def test_bad_config_is_refused_by_name(
    tmp_path: Path, suites: dict[str, dict[str, str]], problem: str
) -> None:
    config = {"model": "anywhere", "evaluation": {"suites": suites}}
    with pytest.raises(ConfigError, match=problem):
        main(*new_job(tmp_path / "job", config))
