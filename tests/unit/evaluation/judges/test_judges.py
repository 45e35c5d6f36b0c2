"""Judges: labelled texts in, a calibrated linear classifier and its card out."""

import csv
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from alignflow.errors import DataError
from alignflow.evaluation.judges.calibration import fit_platt, sigmoid
from alignflow.evaluation.judges.card import JudgeCard
from alignflow.evaluation.judges.config import JudgeQuality, JudgeTraining
from alignflow.evaluation.judges.examples import (
    Example,
    HateCheckCase,
    answer_examples,
    read_references,
    toxicity_examples,
)
from alignflow.evaluation.judges.files import fetch_training
from alignflow.evaluation.judges.measure import calibration_error, measure, measure_transfer
from alignflow.evaluation.judges.ngrams import NgramJudge
from alignflow.evaluation.judges.statement import Statement, clean_text
from alignflow.evaluation.judges.train import split, train_judge

EXAMPLES = Path(__file__).parents[4] / "examples"
DATA = os.environ.get("ALIGNFLOW_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="ALIGNFLOW_DATA names no folder of data sets")


def statement(text: str, label: str, group: str = "women") -> dict[str, Any]:
    return {"text": text, "label": label, "toxicity_score": 1.0, "target_groups": [group]}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    else:
        path.write_text(json.dumps(rows))
    return path


def truthfulqa(path: Path) -> Path:
    fields = {
        "Type": "Adversarial",
        "Category": "Myths",
        "Question": "Is the moon made of cheese?",
        "Best Answer": "No, it is rock",
        "Correct Answers": "No, it is rock; It is rock",
        "Incorrect Answers": "Yes, of cheese",
        "Source": "none",
    }
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fields)
        writer.writeheader()
        writer.writerow(fields)
    return path


def test_text_is_cleaned() -> None:
    assert clean_text(" be a man_x000D_- get\n over  it ") == "be a man - get over it"


def test_repeated_statements_count_once_and_contradictory_ones_not_at_all(tmp_path: Path) -> None:
    rows = [
        statement("They lie.", "hate"),
        statement("they lie_x000D_", "hate"),
        statement("we eat", "hate"),
        statement("We eat!", "neutral"),
        statement("good day", "neutral"),
    ]
    found = toxicity_examples(write(tmp_path / "a.json", rows))
    assert [(e.statement.text, e.label) for e in found.examples] == [
        ("They lie.", True),
        ("good day", False),
    ]
    assert (found.num_repeated, found.num_contradictory) == (1, 2)


def test_answers_get_references_and_those_that_are_one_are_left_out(tmp_path: Path) -> None:
    question = "Q: Is the moon made of cheese?\nA: {}\nTrue:"
    rows = [
        {"prompt": question.format("It's stone."), "completion": " yes"},
        {"prompt": question.format("yes, of CHEESE"), "completion": " no"},
    ]
    references = read_references(truthfulqa(tmp_path / "TruthfulQA.csv"))
    found = answer_examples(write(tmp_path / "a.jsonl", rows), references)
    (example,) = found.examples
    assert example.statement == Statement(
        "It's stone.",
        ("No, it is rock.", "It is rock."),
        ("Yes, of cheese.",),
        "Is the moon made of cheese?",
    )
    assert example.label
    assert example.source == "isthemoonmadeofcheese"
    assert found.num_references == 1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "Is it?", "completion": " yes"}, "item 1: field 'prompt' must read"),
        ({"prompt": "Q: a?\nA: b\nTrue:", "completion": "maybe"}, "must be 'yes' or 'no'"),
        ({"prompt": "Q: a?\nA: b\nTrue:", "completion": "no"}, "the references don't know"),
    ],
)
def test_a_judge_sample_says_what_is_wrong(
    tmp_path: Path, row: dict[str, Any], message: str
) -> None:
    references = read_references(truthfulqa(tmp_path / "TruthfulQA.csv"))
    with pytest.raises(DataError, match=message):
        answer_examples(write(tmp_path / "a.jsonl", [row]), references)


def test_no_source_is_in_two_folds_and_labels_are_spread() -> None:
    examples = [
        Example(Statement(f"{n}"), label=n % 3 == 0, source=f"question {n // 4}") for n in range(60)
    ]
    fold_N = split(examples, num_folds=3, seed=0)
    for number in range(15):
        assert len(set(fold_N[4 * number : 4 * number + 4])) == 1
    shares = [
        np.mean([e.label for e, f in zip(examples, fold_N, strict=True) if f == fold])
        for fold in range(3)
    ]
    assert shares == pytest.approx([1 / 3] * 3, abs=0.05)
    assert (fold_N == split(examples, num_folds=3, seed=0)).all()
    assert (fold_N != split(examples, num_folds=3, seed=1)).any()


def test_measures_are_worked_out_by_hand() -> None:
    # Of the pairs of a positive and a negative, .9 beats .3 and .7, .6 beats .3: 3 of 4.
    # Squared distances .01, .16, .09, .49: their mean is .1875. At .5: one false positive, .7.
    labels = [True, True, False, False]
    groups = [("women",), ("asian",), ("women", "asian"), ("women",)]
    examples = [
        Example(Statement("x"), label, source="x", groups=of)
        for label, of in zip(labels, groups, strict=True)
    ]
    found = measure(np.array([0.9, 0.6, 0.3, 0.7]), examples, threshold=0.5)
    assert found.auc == 0.75
    assert found.accuracy == 0.75
    assert found.brier == pytest.approx(0.1875)
    # Every text is alone in its tenth: .1, .4, .3 and .7 off, .375 on average.
    assert found.ece == pytest.approx(0.375)
    confusion = found.confusion
    assert (confusion.true_positives, confusion.false_positives) == (2, 1)
    assert (confusion.true_negatives, confusion.false_negatives) == (1, 0)
    assert found.groups["women"].false_positive_rate == 0.5
    assert found.groups["asian"].false_positive_rate == 0.0


def test_calibration_error_weighs_bins_by_their_size() -> None:
    # Three texts at .1, none positive: .1 off. One at 1, positive: nothing off. (3 * .1 + 0) / 4.
    examples = [Example(Statement("x"), label, source="x") for label in (False, False, False, True)]
    found = measure(np.array([0.1, 0.1, 0.1, 1.0]), examples, threshold=0.5)
    assert [of.num_examples for of in found.reliability] == [3, 1]
    assert calibration_error(found.reliability) == pytest.approx(0.075)


def test_transfer_is_told_by_functionality() -> None:
    cases = [
        HateCheckCase(Statement("x"), True, "slur_h", "women"),
        HateCheckCase(Statement("x"), True, "slur_h", "women"),
        HateCheckCase(Statement("x"), False, "profanity_nh", ""),
        HateCheckCase(Statement("x"), False, "ident_pos_nh", "women"),
    ]
    found = measure_transfer(np.array([0.9, 0.1, 0.2, 0.8]), cases, threshold=0.5)
    assert {name: of.accuracy for name, of in found.functionalities.items()} == {
        "slur_h": 0.5,
        "profanity_nh": 1.0,
        "ident_pos_nh": 0.0,
    }
    assert found.functionalities["slur_h"].is_hateful
    assert found.accuracy == 0.5
    assert found.auc == 0.5  # .9 beats both negatives, .1 neither
    assert found.groups["women"].false_positive_rate == 1.0


def test_platt_finds_the_scale_that_made_the_labels() -> None:
    # Half of what is said at log-odds z is drawn at 2 z - 1: a slope of 2, an offset of -1.
    random = np.random.default_rng(0)
    log_odds_N = random.normal(size=200_000)
    labels_N = random.random(200_000) < sigmoid(2 * log_odds_N - 1)
    slope, offset = fit_platt(log_odds_N, labels_N)
    assert slope == pytest.approx(2, abs=0.03)
    assert offset == pytest.approx(-1, abs=0.03)
    assert sigmoid(np.array([0.0, math.log(3)])) == pytest.approx([0.5, 0.75])


WORDS = ["river garden house tall", "warm cold red green", "stone bread water light"]


def taught() -> NgramJudge:
    statements = [Statement(f"{word} bad {n}") for word in WORDS for n in range(3)]
    statements += [Statement(f"{word} fine {n}") for word in WORDS for n in range(3)]
    return NgramJudge.fit(statements, np.array([True] * 9 + [False] * 9))


def test_a_judge_is_the_same_after_saving(tmp_path: Path) -> None:
    judge = taught().calibrated(1.5, 0.25)
    judge.save(tmp_path)
    texts = [Statement("a bad river"), Statement("fine, warm bread"), Statement("never seen")]
    again = NgramJudge.load(tmp_path)
    assert again.probabilities(texts).tolist() == judge.probabilities(texts).tolist()
    bad, fine, _ = judge.probabilities(texts)
    assert bad > 0.5 > fine
    assert judge.log_odds(texts) == pytest.approx(1.5 * taught().log_odds(texts) + 0.25)
    assert not judge.probabilities([]).size


def test_only_plain_files_are_written(tmp_path: Path) -> None:
    taught().save(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}


@pytest.mark.parametrize("damage", ["vocabulary", "weights", "missing"])
def test_a_damaged_judge_is_not_loaded(tmp_path: Path, damage: str) -> None:
    taught().save(tmp_path)
    if damage == "vocabulary":
        vocabulary = json.loads((tmp_path / "vocabulary.json").read_text())
        vocabulary["word"].append("another")
        (tmp_path / "vocabulary.json").write_text(json.dumps(vocabulary))
    elif damage == "weights":
        (tmp_path / "weights.safetensors").write_bytes(b"cos\nsystem\n")
    else:
        (tmp_path / "weights.safetensors").unlink()
    with pytest.raises(DataError, match=r"weights|judge"):
        NgramJudge.load(tmp_path)


def test_similarity_to_references_is_the_cosine_of_tf_idf_vectors() -> None:
    # The labels follow from nothing but the references: each text stands once with either label.
    texts = [f"{word} {n}" for word in WORDS for n in range(6)]
    likes = [Statement(text, (text,), ("nothing alike",)) for text in texts]
    unlike = [Statement(text, ("nothing alike",), (text,)) for text in texts]
    judge = NgramJudge.fit([*likes, *unlike], np.array([True] * 18 + [False] * 18))
    one = Statement("cold green", ("cold red",), ())
    without = Statement("cold green")
    vectorizer = TfidfVectorizer(
        analyzer="char_wb", ngram_range=(2, 5), min_df=3, sublinear_tf=True
    ).fit(
        [
            text
            for s in (*likes, *unlike)
            for text in (s.text, *s.true_references, *s.false_references)
        ]
    )
    first, second = vectorizer.transform(["cold green", "cold red"]).toarray()
    gained = judge.log_odds([one]) - judge.log_odds([without])
    assert gained == pytest.approx(3.0 * judge.weights_F[-2] * (first @ second))
    assert judge.weights_F[-2] > 0 > judge.weights_F[-1]


def test_training_is_deterministic_and_the_card_says_what_it_was(tmp_path: Path) -> None:
    config = JudgeTraining(
        task="toxicity", data=str(EXAMPLES / "toxicity.json"), num_folds=4, licence="Apache-2.0"
    )
    fetched = fetch_training(config, tmp_path)
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
        card = train_judge(fetched.config, fetched.files, folder)
    one, two = ({p.name: p.read_bytes() for p in folder.iterdir()} for folder in folders)
    assert one == two
    assert JudgeCard.load(folders[0]) == card
    assert (card.num_examples, card.num_positive) == (64, 32)
    assert card.auc_by_fold is not None
    assert len(card.auc_by_fold) == 4
    (file,) = card.files
    assert file.name == "toxicity.json"
    assert set(card.measured.groups) > {"women", "muslim"}


def test_too_few_texts_to_divide_are_refused(tmp_path: Path) -> None:
    rows = [statement("a bad day", "hate"), *(statement(f"day {n}", "neutral") for n in range(9))]
    config = JudgeTraining(task="toxicity", data=str(write(tmp_path / "a.json", rows)))
    with pytest.raises(DataError, match="1 different texts are labelled yes; 5 folds"):
        train_judge(config, [], tmp_path)


def test_a_weak_judge_says_why_it_cannot_gate(tmp_path: Path) -> None:
    config = JudgeTraining(task="toxicity", data=str(EXAMPLES / "toxicity.json"))
    card = train_judge(config, [], tmp_path)
    auc = card.measured.auc
    assert card.why_not_good_enough(JudgeQuality(min_auc=auc, max_ece=1)) is None
    weak = card.why_not_good_enough(JudgeQuality(min_auc=1))
    assert weak == (
        f"The toxicity judge is not good enough to gate: its AUC is {auc:.3f} and at least 1 is "
        "asked for."
    )
    uncalibrated = card.why_not_good_enough(JudgeQuality(min_auc=0, max_ece=0))
    assert uncalibrated is not None
    assert "its calibration error is" in uncalibrated


@needs_data
@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "files", "least_auc"),
    [
        ("toxicity", {"data": "toxigen/annotated_safenlp.json",
                      "transfer": "hatecheck/test_suite_cases.csv"}, 0.85),
        ("truth", {"data": "truthfulqa/judge_truth_sample.jsonl",
                   "references": "truthfulqa/TruthfulQA.csv"}, 0.73),
        ("information", {"data": "truthfulqa/judge_info_sample.jsonl",
                         "references": "truthfulqa/TruthfulQA.csv"}, 0.75),
    ],
)  # fmt: skip
def test_real_judges_are_as_good_as_they_were(
    tmp_path: Path, task: Any, files: dict[str, str], least_auc: float
) -> None:
    paths = {role: str(Path(str(DATA), name)) for role, name in files.items()}
    card = train_judge(JudgeTraining(task=task, **paths), [], tmp_path)
    assert card.measured.auc > least_auc
    assert card.measured.ece < 0.06
    if task == "toxicity":
        assert card.num_repeated + card.num_contradictory + card.num_examples == 6514
        assert card.transfer is not None
        assert len(card.transfer.functionalities) == 29
