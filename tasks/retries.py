"""Which tasks are tried again, and after what."""

from collections.abc import Callable
from typing import Any, TypedDict

from prefect.cache_policies import NO_CACHE, CachePolicy
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task

from alignflow.errors import JobError, StoreAwayError


def may_end_otherwise(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Whether a retry may help: a job was lost, or the store is away; never after bad input."""
    error = state.result(raise_on_failure=False)
    is_lost = isinstance(error, JobError) and error.failure.kind.is_retryable
    return is_lost or isinstance(error, StoreAwayError)


class _TaskOptions(TypedDict):
    cache_policy: CachePolicy
    retries: int
    retry_delay_seconds: list[float]
    retry_condition_fn: Callable[[Task[..., Any], TaskRun, State[Any]], bool]


STAGE_TASK: _TaskOptions = {
    "cache_policy": NO_CACHE,  # the artifact store decides what is reused
    "retries": 2,  # for tasks with a job a recipe may say otherwise
    "retry_delay_seconds": [10, 60],
    "retry_condition_fn": may_end_otherwise,
}
"""Options of every task that reads or writes the store; a second try finds what the first made.

None of them has tags: for each set of tags Prefect asks its server for a place before the task.
Its client doesn't wait there for a server that it hasn't reached yet, so that the run would fail;
and a server on SQLite refuses now and then, which is waited out for two seconds.
"""
