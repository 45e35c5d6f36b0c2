"""lm-evaluation-harness: its tasks over the items of a suite, judged by its own model loader."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM

from alignflow.evaluation.suites.base import FileSuite
from alignflow.evaluation.suites.harness import load_task
from alignflow.evaluation.suites.toxigen import CHOICES, ToxiGenItem
from alignflow.evaluation.suites.truthfulqa import Targets, TruthfulQAItem


@dataclass(frozen=True)
class HarnessTask:
    """A task of lm-eval beside what is ours of it."""

    name: str
    scores: Mapping[str, str]
    """Our name of each of its metrics."""
    row: Callable[[Any], dict[str, Any]]
    """From an item to the row of the task's data set."""
    choices: Callable[[Any], Sequence[str]]
    """The choices of an item, as our request has them, in the task's order."""


def _choice_row(name: str, item: TruthfulQAItem, targets: Targets) -> dict[str, Any]:
    sets = {"choices": list(targets), "labels": list(targets.values())}
    return {"question": item.question, f"{name}_targets": sets}


def _truthfulqa_task(name: str, score: str) -> HarnessTask:
    """Return a task of TruthfulQA over the answers that one of our scores compares."""
    return HarnessTask(
        f"truthfulqa_{name}",
        {"acc": score},
        lambda item: _choice_row(name, item, getattr(item, score)),
        lambda item: [f" {answer}" for answer in getattr(item, score)],
    )


def _toxigen_row(item: ToxiGenItem) -> dict[str, Any]:
    rating = 5.0 if item.label else 1.0
    return {"text": item.text, "toxicity_ai": rating, "toxicity_human": rating}


_TRUTHFULQA = [_truthfulqa_task("mc1", "mc1"), _truthfulqa_task("mc2", "mc2")]
# lm-eval has no task of the edition of 2025; its MC1 over the best answers is MC0.
_TRUTHFULQA_2025 = [_truthfulqa_task("mc1", "mc0"), *_TRUTHFULQA]
_TOXIGEN = [
    HarnessTask(
        "toxigen",
        {"acc": "accuracy", "acc_norm": "accuracy_norm"},
        _toxigen_row,
        lambda item: CHOICES,
    )
]


def tasks_of(items: Sequence[Any]) -> list[HarnessTask]:
    """Return the tasks that judge the items of a suite."""
    if isinstance(items[0], ToxiGenItem):
        return _TOXIGEN
    return _TRUTHFULQA_2025 if all(item.mc0 for item in items) else _TRUTHFULQA


@dataclass(frozen=True)
class Answer:
    """What lm-eval finds for one item of one task."""

    logprobs: list[float]
    scores: dict[str, float]
    """By our name of each."""


class HarnessSide:
    """The tasks over all items of a suite, and a model."""

    def __init__(self, model: Path, suite: FileSuite[Any], scratch: Path) -> None:
        """Load the model in float32, and each task over a file of its own."""
        self.tasks = tasks_of(suite.items)
        self._loaded = []
        for number, task in enumerate(self.tasks):
            file = scratch / f"task-{number}.jsonl"
            rows = [json.dumps(task.row(item)) for item in suite.items]
            file.write_text("\n".join(rows), encoding="utf-8")
            self._loaded.append(load_task(task.name, file))
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model = HFLM(pretrained=str(model), dtype="float32", device=device)

    def judge(self, items: Sequence[int], *, batch_size: int) -> list[list[Answer]]:
        """Return for each task an answer an item, given the numbers of the items from 0."""
        self._model.batch_size_per_gpu = batch_size
        return [
            self._judge(task, loaded, list(items))
            for task, loaded in zip(self.tasks, self._loaded, strict=True)
        ]

    def _judge(self, task: HarnessTask, loaded: Any, items: list[int]) -> list[Answer]:
        found = evaluate(
            self._model,
            {"tasks": {task.name: loaded}},
            samples={task.name: items},
            bootstrap_iters=0,
        )
        return [
            Answer(
                [logprob for logprob, _ in sample["filtered_resps"]],
                {ours: float(sample[theirs]) for theirs, ours in task.scores.items()},
            )
            for sample in sorted(found["samples"][task.name], key=lambda each: each["doc_id"])
        ]
