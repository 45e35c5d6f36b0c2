"""The job of the judge of answers on a tiny model: its margins are those of transformers."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from job_runs import make_job
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignflow.data_validation.canonical import SCHEMAS
from alignflow.errors import ConfigError
from alignflow.evaluation.answer_judge.__main__ import main
from alignflow.evaluation.measures import read_measures
from alignflow.evaluation.results import write_jsonl
from alignflow.jobs.run_folder import RunFolder
from alignflow.jobs.spec import JobResult

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("one_thread")]

WORDS = ["red", "blue", "green", "warm", "cold", "tall", "short", "river", "house", "garden"]
NUM_PROMPTS = 12
# The answers end the question, where random weights make the most of them.
INSTRUCTIONS = "{prompt}\nA: {answer_a}\nB: {answer_b}"
LONG = "a river and a garden " * 30


@pytest.fixture(scope="module")
def judge(varied_model: Path) -> Path:
    """Its verdict depends on the answers."""
    return varied_model


@pytest.fixture(scope="module")
def preferences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("preferences")
    rows = [
        {
            "id": f"pair-{n}",
            "prompt": [{"role": "user", "content": f"which is {word}?"}],
            "chosen": f"the {word} one",
            "rejected": LONG if n == 1 else f"none, {WORDS[n - 1]}",
        }
        for n, word in enumerate(WORDS)
    ]
    (folder / "card.json").write_text("{}")
    (folder / "held_out").mkdir()
    table = pa.Table.from_pylist(rows, schema=SCHEMAS["preference"])
    pq.write_table(table, folder / "held_out" / "part-00000.parquet")
    return folder


@pytest.fixture(scope="module")
def evaluations(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What three models answered; the champion was asked other questions but for one."""
    folders = {}
    for number, name in enumerate(("aligned", "base", "champion")):
        folders[name] = tmp_path_factory.mktemp(name)
        offset = (NUM_PROMPTS - 1) * (name == "champion")
        samples = [
            {
                "prompt": [{"role": "user", "content": f"tell me of number {n + offset}"}],
                "answer": f"{WORDS[(n + 3 * number) % 10]} and {WORDS[(n * n + number) % 10]}",
                "num_tokens": 4,
            }
            for n in range(NUM_PROMPTS)
        ]
        write_jsonl(folders[name] / "samples.jsonl", samples)
    return folders


def run(
    path: Path, judge: Path, preferences: Path, evaluations: dict[str, Path], **settings: Any
) -> tuple[RunFolder, JobResult]:
    asked = {
        "model": {"source": "org/judge"},
        "instructions": INSTRUCTIONS,
        "max_length": 128,
        "min_accuracy": 0.0,
        **settings,
    }
    config = {
        "judge": asked,
        "model": str(judge),
        "evaluations": {name: str(folder) for name, folder in evaluations.items()},
        "preferences": str(preferences),
        "precision": "fp32",
        "microbatch_tokens": 256,
    }
    folder = make_job(path, config, module="alignflow.evaluation.answer_judge")
    return folder, main(folder, folder.read_spec())


@pytest.fixture(scope="module")
def finished(
    judge: Path,
    preferences: Path,
    evaluations: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[RunFolder, JobResult]:
    return run(tmp_path_factory.mktemp("runs") / "job", judge, preferences, evaluations)


def items(folder: RunFolder, name: str) -> list[dict[str, Any]]:
    lines = (folder.output / "items" / f"{name}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@torch.no_grad()
def plain_margins(judge: Path, item: dict[str, Any], first: str, other: str) -> list[float]:
    """By how much the first answer is preferred in both orders, asked one at a time."""
    tokenizer = AutoTokenizer.from_pretrained(judge)
    model = AutoModelForCausalLM.from_pretrained(judge, dtype=torch.float32).eval()
    margins = []
    for a, b, sign in ((first, other, 1), (other, first, -1)):
        text = INSTRUCTIONS.replace("{prompt}", item["prompt"][0]["content"])
        text = text.replace("{answer_a}", item[a]).replace("{answer_b}", item[b])
        tokens = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_tensors="pt"
        )
        logprobs = model(**tokens).logits[0, -1].double().log_softmax(-1)
        letter_a, letter_b = tokenizer.convert_tokens_to_ids(["A", "B"])
        margins.append(sign * float(logprobs[letter_a] - logprobs[letter_b]))
    return margins


def test_margins_are_those_of_the_next_token(
    finished: tuple[RunFolder, JobResult], judge: Path
) -> None:
    folder, _ = finished
    for item in items(folder, "judged_win_rate")[:4]:
        expected = plain_margins(judge, item, "aligned", "other")
        assert item["margins"] == pytest.approx(expected, abs=2e-4)
    held_out = items(folder, "answer_judge")[0]
    expected = plain_margins(judge, held_out, "chosen", "rejected")
    assert held_out["margins"] == pytest.approx(expected, abs=2e-4)


def test_scores_are_the_means_of_the_items(finished: tuple[RunFolder, JobResult]) -> None:
    folder, result = finished
    duels = items(folder, "judged_win_rate")
    outcomes = {
        name: [item["outcome"] for item in duels if item["against"] == name]
        for name in ("base", "champion")
    }
    assert {name: len(of) for name, of in outcomes.items()} == {"base": NUM_PROMPTS, "champion": 1}
    # Not all of one kind, or this would show nothing.
    assert set(outcomes["base"]) == {0.0, 0.5, 1.0}
    pairs = [item["outcome"] for item in items(folder, "answer_judge")]
    expected = {
        "judged_win_rate/base": np.mean(outcomes["base"]),
        "judged_win_rate/champion": outcomes["champion"][0],
        "answer_judge/accuracy": np.mean(pairs),
        "answer_judge/consistency": np.mean([outcome != 0.5 for outcome in pairs]),
    }
    assert result.metrics == pytest.approx(expected)
    measures = read_measures(folder.output / "measures.json")
    assert {name: of.value for name, of in measures.items()} == pytest.approx(expected)
    scores = json.loads((folder.output / "scores.json").read_text())
    assert scores["scores"] == pytest.approx(expected)
    assert scores["weak_judges"] == {}


def test_what_is_too_long_is_left_out_and_counted(finished: tuple[RunFolder, JobResult]) -> None:
    folder, result = finished
    scores = json.loads((folder.output / "scores.json").read_text())
    assert scores["num_left_out"] == {"held_out": 1, "base": 0, "champion": 0}
    assert LONG not in {item["rejected"] for item in items(folder, "answer_judge")}
    assert result.details["num_items"]["answer_judge"] == len(WORDS) - 1


def test_models_that_change_places_have_mirrored_outcomes(
    finished: tuple[RunFolder, JobResult],
    judge: Path,
    preferences: Path,
    evaluations: dict[str, Path],
    tmp_path: Path,
) -> None:
    swapped = {"aligned": evaluations["base"], "base": evaluations["aligned"]}
    folder, result = run(tmp_path / "job", judge, preferences, swapped, max_pairs=1)
    duels = [item for item in items(finished[0], "judged_win_rate") if item["against"] == "base"]
    mirrored = items(folder, "judged_win_rate")
    assert [item["outcome"] for item in mirrored] == [1 - item["outcome"] for item in duels]
    rate = finished[1].metrics["judged_win_rate/base"]
    assert rate != 0.5
    assert result.metrics["judged_win_rate/base"] == pytest.approx(1 - rate)


def test_a_weak_judge_is_not_trusted_and_a_lost_job_asks_nothing_twice(
    finished: tuple[RunFolder, JobResult],
    judge: Path,
    preferences: Path,
    evaluations: dict[str, Path],
    tmp_path: Path,
) -> None:
    done, result = finished
    shutil.copytree(done.path / "verdicts", tmp_path / "job" / "verdicts")
    folder, again = run(tmp_path / "job", judge, preferences, evaluations, min_accuracy=1.0)
    assert again.metrics == result.metrics
    assert all(line.get("tokens_per_s", 0) == 0 for line in folder.metric_reader().read_new())
    weak = json.loads((folder.output / "scores.json").read_text())["weak_judges"]
    assert weak.keys() == {"judged_win_rate", "length_controlled_judged_win_rate"}
    accuracy = result.metrics["answer_judge/accuracy"]
    assert weak["judged_win_rate"] == (
        "The answer judge is not good enough to gate: its accuracy on 9 held-out pairs is "
        f"{accuracy:.3f} and at least 1 is asked for."
    )


def test_a_question_longer_than_the_judges_positions_is_refused(
    judge: Path, preferences: Path, evaluations: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"evaluation\.answer_judge\.max_length"):
        run(tmp_path / "job", judge, preferences, evaluations, max_length=4096)
