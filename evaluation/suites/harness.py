"""Tasks of lm-evaluation-harness as suites: its prompts and its scores, our model's answers.

A task is what the installed package `lm-eval` defines under that name, but reads its items from the
file that the recipe names, so that a job needs no network and lineage knows the data.
"""

import functools
import importlib.util
import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from itertools import chain, groupby, islice
from pathlib import Path
from typing import Any, Self

from alignflow.errors import ConfigError, DataError, InputError
from alignflow.evaluation.measures import Items
from alignflow.evaluation.suites.base import ChoiceRequest, Suite, SuiteResult

_READERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
_OUTPUT_TYPE = "multiple_choice"


def score_names(task: str) -> tuple[str, ...]:
    """Return the metrics of a task that are means over its items.

    Raises:
        ConfigError: lm-eval isn't installed, has no such task, or asks it for more than choices.
    """
    metrics = _definition(task).get("metric_list") or [{"metric": "acc"}, {"metric": "acc_norm"}]
    names = tuple(
        metric["metric"]
        for metric in metrics
        if _aggregation(metric) == "mean" and metric["metric"] != "exact_match"
    )
    if not names:
        raise ConfigError(f"lm_eval:{task}: none of its metrics is a mean over items.")
    return names


def _aggregation(metric: Mapping[str, Any]) -> object:
    from lm_eval.api.registry import get_metric_aggregation

    named = metric.get("aggregation")
    return named or getattr(get_metric_aggregation(metric["metric"]), "__name__", None)


@functools.cache
def _manager() -> Any:
    """Return lm-eval's index of tasks, which takes seconds to make."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _definition(task: str) -> dict[str, Any]:
    """Return a task's YAML file as it stands, with those that it includes."""
    _check_installed()
    entry = _manager().task_index.get(task)
    if entry is None or entry.yaml_path is None or "group" in (entry.cfg or {}):
        raise ConfigError(
            f"lm_eval:{task}: lm-eval defines no task of this name in a YAML file; "
            "`lm-eval ls tasks` lists them, and of a group name its tasks."
        )
    config: dict[str, Any] = entry.cfg
    if config.get("output_type") != _OUTPUT_TYPE:
        raise ConfigError(
            f"lm_eval:{task}: asks for {config.get('output_type')}; only tasks of multiple choice "
            "can be used as a suite."
        )
    samples = (config.get("fewshot_config") or {}).get("samples")
    if config.get("num_fewshot") and not samples:
        raise ConfigError(
            f"lm_eval:{task}: draws its {config['num_fewshot']} examples from another split; only "
            "tasks without examples, or that define them, can be used as a suite."
        )
    return {**config, "yaml_path": entry.yaml_path}


def _check_installed() -> None:
    if importlib.util.find_spec("lm_eval") is None:
        raise ConfigError(
            "suites named lm_eval:TASK need lm-evaluation-harness, which isn't installed: "
            "pip install 'alignflow[lm-eval]'."
        )


def load_task(task: str, path: Path) -> Any:
    """Return lm-eval's task over the items of a file.

    Args:
        task: Its name.
        path: JSON, JSON lines, CSV or Parquet, a record an item with the fields of the task's own
            data set.

    Raises:
        ConfigError: See `score_names`.
        DataError: The file isn't of a kind that lm-eval reads.
        Exception: Whatever the task's own code raises over items that it can't take.
    """
    definition = _definition(task)
    if path.suffix not in _READERS:
        raise DataError(f"{path}: must end in one of {', '.join(_READERS)} for lm_eval:{task}.")
    split = definition.get("test_split") or definition.get("validation_split")
    with tempfile.TemporaryDirectory() as scratch:
        settings = {
            "include": str(definition["yaml_path"]),
            "task": task,
            "dataset_path": _READERS[path.suffix],
            "dataset_name": None,
            "dataset_kwargs": {
                "data_files": {split: str(path.absolute())},
                "cache_dir": scratch,
                "keep_in_memory": True,
            },
            "training_split": None,
            "fewshot_split": None,
        }
        file = Path(scratch, "task.yaml")
        file.write_text(json.dumps(settings), encoding="utf-8")
        return _manager().load(str(file))["tasks"][task]


class HarnessTask(Suite):
    """A multiple-choice task of lm-eval; its metrics that are means over items."""

    def __init__(self, task: Any, names: Sequence[str], *, limit: int | None) -> None:
        """Build the requests of a task, or of its first so many items."""
        task.build_all_requests(limit=limit)
        instances = groupby(task.instances, key=lambda instance: instance.doc_id)
        self._task = task
        self._names = names
        self._documents = [list(of_document) for _, of_document in instances]

    @classmethod
    def load(cls, task: str, path: Path, *, limit: int | None = None) -> Self:
        """Read the items of a task, or the first so many.

        Raises:
            ConfigError: See `score_names`.
            DataError: The file doesn't hold what the task asks for.
        """
        names = score_names(task)
        try:
            suite = cls(load_task(task, path), names, limit=limit)
            # What can't be scored shows before a model is asked.
            suite._metrics(suite._documents[0], [0.0] * len(suite._documents[0]))
        except InputError:
            raise
        except Exception as error:  # a task runs code of its own on whatever the file holds
            raise DataError(
                f"{path}: lm-eval's task {task} can't be made of it ({error!r}); give a file with "
                "the fields of the task's own data set."
            ) from None
        return suite

    @property
    def num_items(self) -> int:
        """Items that are judged."""
        return len(self._documents)

    def requests(self) -> list[ChoiceRequest]:
        """A request for each context that lm-eval gives an item's choices, mostly one an item."""
        return [
            ChoiceRequest(context, tuple(instance.args[1] for instance in of_context))
            for document in self._documents
            for context, of_context in groupby(document, key=lambda instance: instance.args[0])
        ]

    def result(self, logprobs: Sequence[Sequence[float]]) -> SuiteResult:
        """Return the task's scores and an object an item."""
        values = chain.from_iterable(logprobs)
        metrics, items = [], []
        for document in self._documents:
            answers = list(islice(values, len(document)))
            texts = [instance.args[1] for instance in document]
            metrics.append(self._metrics(document, answers))
            items.append(
                {
                    **metrics[-1],
                    "answers": [
                        {"text": text, "logprob": value}
                        for text, value in zip(texts, answers, strict=True)
                    ],
                }
            )
        by_name = {name: [of_item[name] for of_item in metrics] for name in self._names}
        judged = Items.of(
            [instance.args[:2] for instance in document] for document in self._documents
        )
        shares = [name for name in self._names if name.startswith("acc")]
        return SuiteResult.of_means(judged, by_name, items, shares=shares)

    def _metrics(self, document: Sequence[Any], logprobs: Sequence[float]) -> dict[str, float]:
        """Return the scores of one item; NaN where the model answers so."""
        if any(map(math.isnan, logprobs)):
            return dict.fromkeys(self._names, math.nan)
        # lm-eval's own scorer looks at the flag for `exact_match` alone, which is no score here.
        has_own_scorer = self._task.config.process_results is not None
        is_greedy = _NotAsked() if has_own_scorer else False
        answers = [(logprob, is_greedy) for logprob in logprobs]
        metrics = self._task.process_results(document[0].doc, answers)
        return {name: float(metrics[name]) for name in self._names}


class _NotAsked:
    """Stands where a task's own scorer finds whether a choice is the greedy answer."""

    def __bool__(self) -> bool:
        raise ConfigError(
            "the task scores whether a choice is the greedy answer, which isn't computed; "
            "use a task that compares log-probabilities."
        )

    __int__ = __bool__
