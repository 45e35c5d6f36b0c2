"""What the report takes from the artifacts of a run."""

import math
from pathlib import Path

import pytest

from alignflow.evaluation.gate import Measures
from alignflow.evaluation.measures import Items, Measure
from alignflow.reporting.model import Answer, Difference, ModelRole, Sample
from alignflow.tasks.evaluate import JudgedAnswers
from alignflow.tasks.evaluated import Evaluated
from alignflow.tasks.items import distributions_of, samples_of, worst_items
from alignflow.tasks.pipeline import Pipeline, Stage, StageOutput, run_stage
from alignflow.tasks.report import sample_table, training_rows
from alignflow.tasks.scores import answer_judge_summary, differences_of, win_rate_rows
from alignflow.tasks.tracking import StageRun


def test_training_stages_tell_what_they_cut_and_refused(pipeline: Pipeline) -> None:
    refused = [{"id": "row-17", "reason": "empty_mask"}]
    judged = {"num_items": {}, "num_truncated": 1, "refused_rows": []}
    trained = {"num_rows": 20, "num_truncated": 3, "num_refused": 1, "refused_rows": refused}
    for kind, details in (("sft", trained), ("evaluation", judged)):

        def compute(
            _run: StageRun, scratch: Path, details: dict[str, object] = details
        ) -> StageOutput:
            (scratch / "file").write_text(str(details))
            return StageOutput(scratch, details=details)

        run_stage(pipeline, Stage(name=kind, kind=kind, config={}, revision=1), compute)
    (rows,) = training_rows(pipeline)
    assert (rows.stage, rows.num_rows, rows.num_truncated, rows.num_refused) == ("sft", 20, 3, 1)
    assert [(row.id, row.reason) for row in rows.refused] == [("row-17", "empty_mask")]


def test_differences_are_formed_item_by_item_against_every_other_model() -> None:
    items = Items.of(range(40))
    aligned = {"s": Measure.mean(items, [1.0] * 40), "kl": Measure.mean(items, [0.1] * 40)}
    models: dict[ModelRole, Measures] = {
        "base": {"s": Measure.mean(items, [0.0] * 20 + [1.0] * 20)},
        "sft": {"s": Measure.mean(Items.of([0]), [0.0]), "kl": Measure.mean(items, [0.3] * 40)},
        "aligned": aligned,
    }
    found = differences_of("s", aligned, models)
    assert list(found) == ["base", "sft"]
    assert (found["base"].value, found["base"].num_items) == (0.5, 40)
    # 0.5 ± 1.96 * sqrt(0.25 / 40) = 0.5 ± 0.155.
    assert found["base"].interval == pytest.approx((0.345, 0.655), abs=0.03)
    assert found["sft"] == Difference(value=1.0, interval=None, num_items=1)
    assert list(differences_of("kl", aligned, models)) == ["sft"]


def evaluated(rewards: list[float], lengths: list[int]) -> Evaluated:
    """A model that answers 40 prompts, the longer the better liked."""
    prompts = [[{"role": "user", "content": f"question {number}"}] for number in range(40)]
    items = Items.of(prompts)
    samples = [{"prompt": prompt, "answer": "so", "reward": 1.0} for prompt in prompts]
    measures = {
        "samples/mean_reward": Measure.mean(items, rewards),
        "samples/mean_tokens": Measure.mean(items, lengths),
    }
    return Evaluated({"scores": {}}, measures, samples)


def test_win_rates_stand_beside_the_lengths_of_the_answers() -> None:
    # 30 wins, of which the 20 by the longer answers, 10 losses.
    aligned = evaluated([1.0] * 30 + [-1.0] * 10, [30] * 20 + [10] * 20)
    models: dict[ModelRole, Evaluated] = {"sft": evaluated([0.0] * 40, [20] * 40)}
    (row,) = win_rate_rows({**models, "aligned": aligned}, tie_margin=0.5)
    assert (row.against, row.num_prompts, row.rate, row.ties) == ("sft", 40, 0.75, 0.0)
    assert (row.tokens, row.other_tokens) == (20, 20)
    assert row.interval is not None
    # 0.75 ± 1.96 * sqrt(0.75 * 0.25 / 40) = 0.75 ± 0.134.
    assert row.interval == pytest.approx((0.616, 0.884), abs=0.04)
    assert row.length_controlled is not None
    assert win_rate_rows({**models, "aligned": aligned}, tie_margin=1.5)[0].ties == 1.0


def test_samples_are_matched_by_their_prompt_and_a_dozen_shown() -> None:
    aligned, champion = (evaluated([0.0] * 40, [1] * 40) for _ in range(2))
    champion.samples.reverse()
    del champion.samples[-1]
    shown = samples_of({"champion": champion, "aligned": aligned})
    assert len(shown) == 12
    assert list(shown[0].answers) == ["aligned"]
    assert list(shown[1].answers) == ["champion", "aligned"]


def test_rewards_that_can_not_be_compared_are_not_shown() -> None:
    aligned, champion = (evaluated([0.0] * 40, [1] * 40) for _ in range(2))
    lengths = {"samples/mean_tokens": champion.measures["samples/mean_tokens"]}
    other = Evaluated(champion.scores, lengths, champion.samples)
    shown = samples_of({"champion": other, "aligned": aligned})
    assert [answer.reward for answer in shown[0].answers.values()] == [None, 1.0]
    assert win_rate_rows({"champion": other, "aligned": aligned}, tie_margin=0.0) == []


def test_lengths_of_all_models_are_counted_in_the_same_bins() -> None:
    base = evaluated([0.0] * 40, [0] * 30 + [10] * 10)
    aligned = evaluated([0.0] * 40, [20] * 40)
    (lengths,) = distributions_of({"base": base, "aligned": aligned})
    assert lengths.title == "Length of the answers"
    assert (lengths.edges[0], lengths.edges[-1], len(lengths.edges)) == (0.0, 20.0, 21)
    assert [n for n in lengths.counts["base"] if n] == [30, 10]
    assert lengths.counts["aligned"][-1] == 40
    assert lengths.means == {"base": 2.5, "aligned": 20.0}


def test_margins_of_the_reward_model_are_shown_once_and_as_its_own() -> None:
    model = evaluated([0.0] * 40, [1] * 40)
    margins = Measure.mean(Items.of(range(4)), [-1.0, 0.0, 1.0, math.nan])
    judged = Evaluated(model.scores, {"reward_model/margin": margins}, [])
    (spread,) = distributions_of({"base": judged, "aligned": judged})
    assert spread.label == "reward model"
    assert (list(spread.counts), sum(spread.counts["aligned"])) == (["aligned"], 3)


def test_items_that_the_base_model_did_better_on_come_first_among_the_worst() -> None:
    statements = ["a", "b", "c", "d"]
    names = Items.of(statements)

    def judged(values: list[float]) -> Evaluated:
        items = [
            {"item": n, "text": text, "label": 1, "prediction": int(value == 1)}
            for n, (text, value) in enumerate(zip(statements, values, strict=True), start=1)
        ]
        measures = {"toxicity/accuracy": Measure.mean(names, values, is_share=True)}
        # Pairs have numbers, but no text to show.
        return Evaluated({}, measures, [], {"toxicity": items, "preference": [{"item": 1}]})

    found = worst_items({"base": judged([0, 1, 1, 1]), "aligned": judged([0, 1, 0, math.nan])})
    assert [(item.text, item.value, item.base_value) for item in found] == [
        ("c", 0.0, 1.0),
        ("a", 0.0, 0.0),
        ("b", 1.0, 1.0),
    ]
    assert (found[0].suite, found[0].said) == ("Toxicity, accuracy", "called harmless")


def test_worst_question_is_shown_with_the_likeliest_answer() -> None:
    answers = [{"text": "Yes.", "logprob": -1.0}, {"text": "No.", "logprob": -3.0}]
    questions = [{"item": n, "question": f"is it {n}?", "answers": answers} for n in range(7)]
    measures = {"truth/mc2": Measure.mean(Items.of(range(7)), [0.1 * n for n in range(7)])}
    found = worst_items({"aligned": Evaluated({}, measures, [], {"truth": questions})})
    assert [item.text for item in found] == [f"is it {n}?" for n in range(5)]
    assert (found[0].said, found[0].base_value) == ("likeliest answer: Yes.", None)


def test_table_for_review_has_a_row_an_answer_with_nothing_hidden_in_it() -> None:
    prompt = [{"role": "user", "content": "why\u202e?"}]
    answers = {"base": Answer(text="so"), "aligned": Answer(text="\x07", reward=1.5)}
    table = sample_table([Sample.model_validate({"prompt": prompt, "answers": answers})])
    assert table == {
        "prompt": ["user: why[U+202E]?"] * 2,
        "model": ["base", "aligned"],
        "answer": ["so", "[U+0007]"],
        "reward": [None, 1.5],
    }


def test_a_judge_of_answers_stands_beside_whom_it_preferred() -> None:
    prompts = Items.of([[{"role": "user", "content": f"question {n}"}] for n in range(40)])
    models: dict[ModelRole, Evaluated] = {
        "sft": evaluated([0.0] * 40, [20] * 40),
        "aligned": evaluated([0.0] * 40, [30] * 20 + [10] * 20),
    }
    answers = JudgedAnswers(
        {
            "answer_judge/accuracy": Measure.mean(Items.of([]), []),
            "answer_judge/consistency": Measure.mean(Items.of(range(20)), [1.0] * 15 + [0.0] * 5),
            "judged_win_rate/sft": Measure.mean(prompts, [1.0] * 20 + [0.5] * 20, is_share=True),
        },
        weak_judges={"judged_win_rate": "The judge is weak."},
        num_left_out=3,
    )
    summary = answer_judge_summary("org/judge", models, answers)
    assert (summary.name, summary.num_left_out) == ("org/judge", 3)
    assert summary.objection == "The judge is weak."
    assert (summary.accuracy, summary.num_pairs) == (None, 0)
    assert summary.consistency == 0.75
    (row,) = summary.win_rates
    assert (row.against, row.rate, row.ties) == ("sft", 0.75, 0.5)
    assert (row.tokens, row.other_tokens) == (20, 20)
