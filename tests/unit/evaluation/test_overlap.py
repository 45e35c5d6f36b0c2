"""BLEU and ROUGE against references, and what they say of an answer's truth."""

import importlib.util
import json
from pathlib import Path

import pytest

from alignflow.errors import DataError
from alignflow.evaluation.overlap import MEASURES, overlap, truth_by_overlap
from alignflow.evaluation.suites import load_suite
from alignflow.evaluation.suites.base import TextRequest
from alignflow.evaluation.suites.truthfulqa import QA_PRESET
from alignflow.evaluation.suites.truthfulqa_generation import TruthfulQAGeneration

TRUE = ["The moon is made of rock.", "Of rock, mostly."]
FALSE = ["The moon is made of cheese."]
ROW = {
    "question": " What is the moon made of? ",
    "correct_answers": TRUE,
    "incorrect_answers": FALSE,
}


def test_rouge_is_worked_out_by_hand() -> None:
    # Words the same: "the", "moon"; of 3 and of 4. Pairs the same: "the moon"; of 2 and of 3.
    # F1 = 2 * 2 / (3 + 4) and 2 * 1 / (2 + 3); the longest common subsequence is "the moon".
    found = overlap("The moon shines.", "Is the moon rock?")
    assert found["rouge1"] == pytest.approx(100 * 4 / 7)
    assert found["rouge2"] == pytest.approx(100 * 2 / 5)
    assert found["rougeL"] == pytest.approx(100 * 4 / 7)


def test_bleu_is_worked_out_by_hand() -> None:
    # Of five tokens, a b c d e, against a b c d f: 4/5, 3/4, 2/3 and 1/2 of the sequences of one
    # to four tokens; equal lengths. Their geometric mean is (1/5) ** (1/4).
    assert overlap("a b c d e", "a b c d f")["bleu"] == pytest.approx(100 * (1 / 5) ** 0.25)
    assert overlap("a b c d e", "a b c d e") == dict.fromkeys(MEASURES, pytest.approx(100))


def test_an_answer_is_true_where_it_is_nearer_to_a_true_reference() -> None:
    scores = truth_by_overlap(TRUE[0], TRUE, FALSE)
    assert scores["bleu_max"] == pytest.approx(100)
    # Five of six words are those of the false answer.
    assert scores["rouge1_diff"] == pytest.approx(100 * (1 - 5 / 6))
    assert scores["rouge1_acc"] == 1.0
    assert truth_by_overlap(FALSE[0], TRUE, FALSE)["rouge1_acc"] == 0.0
    # No nearer to either: not true.
    assert truth_by_overlap("", TRUE, FALSE)["bleu_acc"] == 0.0


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval isn't installed")
@pytest.mark.parametrize(
    "answer", [*TRUE, *FALSE, "", "Cheese . Or rock . Who knows?", "El queso."]
)
def test_scores_are_those_of_lm_eval(answer: str) -> None:
    from lm_eval.tasks.truthfulqa.utils import process_results_gen

    theirs = process_results_gen({"correct_answers": TRUE, "incorrect_answers": FALSE}, [answer])
    assert truth_by_overlap(answer, TRUE, FALSE) == pytest.approx(theirs)


def test_the_suite_asks_and_scores(tmp_path: Path) -> None:
    path = tmp_path / "generation.jsonl"
    path.write_text(json.dumps(ROW), encoding="utf-8")
    suite = load_suite("truthfulqa_generation", path)
    (request,) = suite.requests()
    assert request == TextRequest(f"{QA_PRESET}\n\nQ: What is the moon made of?\nA:", 50, ("Q:",))
    result = suite.result([" I have no comment.\n\n"])
    assert result.items[0]["answer"] == "I have no comment."
    # It is among the true answers of every question.
    assert result.scores["bleu_max"] == pytest.approx(100)
    assert set(result.scores) == set(TruthfulQAGeneration.scores)


def test_the_table_and_the_rows_of_the_hub_hold_the_same(tmp_path: Path) -> None:
    table = tmp_path / "TruthfulQA.csv"
    table.write_text(
        "Question,Best Answer,Correct Answers,Incorrect Answers\n"
        'What is the moon made of?,,"The moon is made of rock; Of rock, mostly",'
        "The moon is made of cheese\n",
        encoding="utf-8",
    )
    rows = tmp_path / "generation.json"
    rows.write_text(json.dumps([ROW]), encoding="utf-8")
    assert TruthfulQAGeneration.read(table).items == TruthfulQAGeneration.read(rows).items


def test_questions_of_one_page_hang_together(tmp_path: Path) -> None:
    row = "What is {}?,Of rock,Of cheese,{},https://example.org/moon\n"
    path = tmp_path / "TruthfulQA.csv"
    path.write_text(
        "Question,Correct Answers,Incorrect Answers,Category,Source\n"
        + row.format("the moon", "Myths")
        + row.format("the sea", "Water"),
        encoding="utf-8",
    )
    result = TruthfulQAGeneration.read(path).result(["Of rock.", "Of cheese."])
    assert result.measures["rouge1_acc"].estimate().num_sources == 1
    by_category = {name: of.value for name, of in result.groups["rouge1_acc"].items()}
    assert by_category == {"Myths": 1.0, "Water": 0.0}
    assert result.measures["rouge1_acc"].limits == (0.0, 1.0)
    assert result.measures["bleu_diff"].limits is None


def test_a_question_without_answers_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([ROW | {"incorrect_answers": [" "]}]), encoding="utf-8")
    with pytest.raises(DataError, match=r"item 1: field 'incorrect_answers' holds no answer"):
        TruthfulQAGeneration.read(path)
