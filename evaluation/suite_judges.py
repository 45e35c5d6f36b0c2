"""The judges that say what a model's answers to a suite are worth."""

from collections.abc import Mapping
from pathlib import Path

from alignflow.errors import DataError
from alignflow.evaluation.config import EvaluationConfig, EvaluationJob
from alignflow.evaluation.judges.config import JudgeTask
from alignflow.evaluation.judges.judge import Judge
from alignflow.evaluation.results import Results

JUDGES_FOLDER = "judges"
"""Where the job's output holds the cards, `SUITE/TASK/card.json`."""

Judges = dict[JudgeTask, Judge]


def load_judges(job: EvaluationJob) -> dict[str, Judges]:
    """Read the judges of each suite.

    Raises:
        DataError: A suite's judge is missing, is of another kind, or can't be loaded.
    """
    judges: dict[str, Judges] = {}
    for name, suite in job.evaluation.suites.items():
        folders = job.judges.get(name, {})
        judges[name] = {}
        for task in suite.judges:
            if task not in folders:
                raise DataError(f"suite {name} has no judge of {task}.")
            judge = Judge.load(folders[task])
            if judge.card.task != task:
                raise DataError(f"{folders[task]}: is a judge of {judge.card.task}, not of {task}.")
            judges[name][task] = judge
    return judges


def save_cards(judges: Mapping[str, Judges], output: Path) -> None:
    """Put the judges' cards beside the scores that they give."""
    for name, of_suite in judges.items():
        for task, judge in of_suite.items():
            folder = output / JUDGES_FOLDER / name / task
            folder.mkdir(parents=True, exist_ok=True)
            judge.card.save(folder)


def distrust_weak(judges: Mapping[str, Judges], config: EvaluationConfig, results: Results) -> None:
    """Tell the results which suites have a judge that isn't as good as the recipe asks."""
    for name, suite in config.suites.items():
        for task, asked in suite.judges.items():
            reason = judges[name][task].card.why_not_good_enough(asked)
            if reason is not None:
                results.distrust(name, reason)
