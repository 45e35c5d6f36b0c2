"""What is tried again, and what would end in the same way."""

import asyncio
import importlib
import pkgutil

import pytest
from prefect import Task, task
from prefect.client.schemas.objects import StateType, TaskRun
from prefect.states import exception_to_failed_state

from alignflow import tasks
from alignflow.errors import ConfigError, CorruptArtifactError, JobError, StoreAwayError, StoreError
from alignflow.jobs.failures import make_failure
from alignflow.jobs.spec import FailureKind
from alignflow.tasks.retries import may_end_otherwise


@task
def stage() -> None:
    pass


def lost(kind: FailureKind) -> JobError:
    return JobError(make_failure(kind, "The job ended."))


@pytest.mark.parametrize(
    ("error", "is_tried"),
    [
        (lost(FailureKind.NODE_LOST), True),
        (lost(FailureKind.PREEMPTED), True),
        (StoreAwayError("can't read s3://b/k: 10.0.0.1 doesn't answer."), True),
        (lost(FailureKind.DISK_FULL), False),
        (lost(FailureKind.DIVERGED), False),
        (StoreError("can't read s3://b/k: access is denied."), False),
        (CorruptArtifactError("the artifact is damaged."), False),
        (ConfigError("beta: must be positive."), False),
    ],
    ids=str,
)
def test_what_may_pass_is_tried_again(error: Exception, is_tried: bool) -> None:
    state = asyncio.run(exception_to_failed_state(error))
    assert state.type is StateType.FAILED
    run = TaskRun(task_key="stage", dynamic_key="0", flow_run_id=None)
    assert may_end_otherwise(stage, run, state) is is_tried


def test_no_task_has_to_ask_the_server_before_it_starts() -> None:
    modules = [
        importlib.import_module(module.name)
        for module in pkgutil.iter_modules(tasks.__path__, "alignflow.tasks.")
    ]
    found = {each for module in modules for each in vars(module).values() if isinstance(each, Task)}
    assert len(found) > 10
    assert {each.name: each.tags for each in found if each.tags} == {}
