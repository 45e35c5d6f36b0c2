"""The part of an evaluation job in which the model writes and judges say what that is worth."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from alignflow.errors import DataError
from alignflow.evaluation.config import EvaluationJob
from alignflow.evaluation.judges.config import JudgeTask
from alignflow.evaluation.judges.judge import Judge
from alignflow.evaluation.progress import Progress
from alignflow.evaluation.results import Results
from alignflow.evaluation.suites.base import Suite
from alignflow.evaluation.suites.generation import Answer, Continue, GenerationSuite, Request
from alignflow.evaluation.writing import Written, answer_conversations, continue_texts
from alignflow.training.chat import ChatTokenizer
from alignflow.training.megatron.inference import LanguageModel
from alignflow.training.steering import Steering
from alignflow.training.tokenizer import load_tokenizer

JUDGES_FOLDER = "judges"
"""Where the job's output holds the cards, `SUITE/TASK/card.json`."""

Judges = dict[str, dict[JudgeTask, Judge]]


def load_judges(job: EvaluationJob, output: Path) -> Judges:
    """Read the judges of all suites, and put their cards beside the scores that they give.

    Raises:
        DataError: A suite's judge is missing, is of another kind, or can't be loaded.
    """
    judges: Judges = {}
    for name, suite in job.evaluation.suites.items():
        folders = job.judges.get(name, {})
        for task in suite.judges:
            if task not in folders:
                raise DataError(f"suite {name} has no judge of {task}.")
            judge = Judge.load(folders[task])
            if judge.card.task != task:
                raise DataError(f"{folders[task]}: is a judge of {judge.card.task}, not of {task}.")
            judges.setdefault(name, {})[task] = judge
            folder = output / JUDGES_FOLDER / name / task
            folder.mkdir(parents=True, exist_ok=True)
            judge.card.save(folder)
    return judges


def judge_generations(
    policy: LanguageModel,
    job: EvaluationJob,
    suites: Mapping[str, Suite | GenerationSuite],
    judges: Judges,
    *,
    steering: Steering | None,
    results: Results,
    progress: Progress,
) -> dict[str, int]:
    """Add the result of every suite of generation; return how many prompts of each were cut."""
    num_truncated = {}
    for name, suite in suites.items():
        if not isinstance(suite, GenerationSuite):
            continue
        progress.begin(name, suite.num_items)
        written = _write(policy, job, suite.requests(), steering, progress)
        results.add(name, suite.result(written.answers, judges.get(name, {})), suite.num_items)
        num_truncated[name] = written.num_truncated
        for task, asked in job.evaluation.suites[name].judges.items():
            reason = judges[name][task].card.why_not_good_enough(asked)
            if reason is not None:
                results.distrust(name, reason)
    return num_truncated


def _write(
    policy: LanguageModel,
    job: EvaluationJob,
    requests: Sequence[Request],
    steering: Steering | None,
    progress: Progress,
) -> Written:
    """Return what the model writes for requests of one kind."""
    texts = [request.text for request in requests if isinstance(request, Continue)]
    if texts:
        tokenizer = load_tokenizer(job.model)
        return continue_texts(policy, tokenizer, texts, job.evaluation, progress.advance)
    ask = steering.prompt if steering is not None else list
    conversations = [ask(request.messages) for request in requests if isinstance(request, Answer)]
    chat = ChatTokenizer.load(job.model)
    return answer_conversations(policy, chat, conversations, job.evaluation, progress.advance)
