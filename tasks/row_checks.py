"""Rows checked by tasks on a Dask or Ray cluster, through Prefect's own task runners.

What depends on the order of the rows stays with the flow: a task says what can be said of each row
of its part by itself, and the flow compares the rows as the parts come back.
"""

import os
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from contextvars import copy_context
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Self, TypeAlias
from uuid import uuid4

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture
from prefect.settings import PREFECT_API_URL
from prefect.task_runners import TaskRunner

from alignflow.data_validation.blocks import Block
from alignflow.data_validation.judging import BlockJudge, JudgedBlock
from alignflow.data_validation.parts import judge_part
from alignflow.errors import ConfigError, RunStoppedError, WorkerError
from alignflow.tasks.config import RowChecksConfig
from alignflow.tasks.prefect_server import is_temporary

_PACKAGES = {"dask": "prefect_dask", "ray": "prefect_ray"}
_HERE = ("", "localhost", "127.0.0.1", "::1")
_LOOK_S = 1.0
"""How often whoever waits for a part looks whether the run is over."""

_Runner: TypeAlias = TaskRunner[PrefectFuture[list[JudgedBlock]]]


class Part:
    """Blocks and what judges them, as they are sent.

    Not a dataclass: Prefect and Dask look into what they know, and would go through all the rows.
    """

    def __init__(self, judge: BlockJudge, blocks: Sequence[Block]) -> None:
        self.judge, self.blocks = judge, blocks
        self._token = uuid4().hex

    def __dask_tokenize__(self) -> str:
        """Return what tells it from any other."""
        return self._token


@task(name="check-rows", cache_policy=NO_CACHE, persist_result=False)
def check_part(part: Part) -> list[JudgedBlock]:
    """Return what is known of the rows of each block of a part by themselves, in order."""
    return judge_part(part.judge, part.blocks)


class RowChecks:
    """The cluster that checks the rows of a run's training sets.

    It is started or connected to with the first part, so that a run whose sets are all in the store
    takes none. Made in the flow, whose tasks the parts then are, whichever task submits them.

    Raises:
        ConfigError: The runner isn't installed, or its workers couldn't reach the Prefect server.
    """

    def __init__(self, config: RowChecksConfig) -> None:
        self._config = config
        self._context = copy_context()
        self._lock = threading.Lock()
        self._exits = ExitStack()
        self._runner: _Runner | None = None
        self._is_closed = False
        _check_installed(config)
        _check_server(config)

    @classmethod
    def of(cls, config: RowChecksConfig) -> Self | None:
        """Return what a recipe asks for; None where processes of this machine check rows."""
        return None if config.runner == "local" else cls(config)

    def executor(self, raise_if_stopped: Callable[[], None]) -> "PartTasks":
        """Return what judges the parts of one set.

        Args:
            raise_if_stopped: Called now and then while a part is waited for.
        """
        return PartTasks(self, self._config.parts_ahead, raise_if_stopped)

    def submit(self, part: Part) -> PrefectFuture[list[JudgedBlock]]:
        """Submit a part as a task of the flow.

        Raises:
            ConfigError: There is no such cluster.
            RunStoppedError: The run has ended.
        """
        runner = self._started()
        # The task that calls this one is no parent: its arguments, such as the pipeline, would be
        # sent with each part.
        return self._context.copy().run(runner.submit, check_part, {"part": part})

    def failed(self, error: Exception) -> WorkerError:
        """Return the error for a part that the cluster could not judge."""
        return WorkerError(
            f"A task that checks rows failed on the {self._config.runner} cluster "
            f"({type(error).__name__}: {error}); see what its workers log, and whether they have "
            "enough memory and this version of alignflow."
        )

    def close(self) -> None:
        """End the cluster, or the connection to it."""
        with self._lock:
            self._is_closed = True
            self._runner = None
            self._exits.close()

    def _started(self) -> _Runner:
        with self._lock:
            if self._is_closed:
                raise RunStoppedError("The run was stopped before all rows were checked.")
            if self._runner is None:
                self._runner = self._start()
            return self._runner

    def _start(self) -> _Runner:
        where = self._config.address or "this machine"
        try:
            make = _dask_runner if self._config.runner == "dask" else _ray_runner
            return make(self._config, self._exits)
        except Exception as error:  # each cluster has errors of its own
            raise ConfigError(
                f"row_checks: no {self._config.runner} cluster answers at {where} ({error}); see "
                "that it is up and that address is that of its scheduler."
            ) from error


@dataclass(frozen=True)
class PartTasks:
    """Judges the parts of one set as tasks."""

    checks: RowChecks
    parts_ahead: int
    raise_if_stopped: Callable[[], None]

    def submit(self, judge: BlockJudge, blocks: Sequence[Block]) -> "_PendingTask":
        """Submit the blocks of a part as one task."""
        return _PendingTask(self, self.checks.submit(Part(judge, blocks)))


@dataclass(frozen=True)
class _PendingTask:
    """A part that a task judges."""

    tasks: PartTasks
    future: PrefectFuture[list[JudgedBlock]]

    def result(self) -> list[JudgedBlock]:
        while True:
            try:
                return self.future.result(timeout=_LOOK_S)
            except TimeoutError:
                self.tasks.raise_if_stopped()
            except Exception as error:
                self.tasks.raise_if_stopped()
                raise self.tasks.checks.failed(error) from error


def _check_installed(config: RowChecksConfig) -> None:
    if find_spec(_PACKAGES[config.runner]) is None:
        raise ConfigError(
            f"row_checks.runner {config.runner} needs a package that isn't installed; run "
            f"pip install 'alignflow[{config.runner}]'."
        )


def _check_server(config: RowChecksConfig) -> None:
    """See that workers on other machines can tell the Prefect server of their tasks."""
    host = (config.address or "").rpartition("//")[2].rpartition(":")[0].strip("[]")
    if host not in _HERE and is_temporary(str(PREFECT_API_URL.value())):
        raise ConfigError(
            f"row_checks.address is on {host}, from where the temporary Prefect server of this run "
            "can't be reached; start one with prefect server start --host 0.0.0.0 and set "
            "PREFECT_API_URL to it."
        )


def _dask_runner(config: RowChecksConfig, exits: ExitStack) -> _Runner:
    from prefect_dask.task_runners import DaskTaskRunner

    runner: Any
    if config.address:
        runner = DaskTaskRunner(address=config.address)
    else:
        runner = DaskTaskRunner(
            cluster_kwargs={
                "n_workers": _num_processes(config),
                "threads_per_worker": 1,
                "dashboard_address": "127.0.0.1:0",
            }
        )
    exits.enter_context(runner)
    runner.client  # noqa: B018 (connects, which it would else do in whichever thread comes first)
    return runner  # type: ignore[no-any-return]


def _ray_runner(config: RowChecksConfig, exits: ExitStack) -> _Runner:
    from prefect_ray.task_runners import RayTaskRunner

    if config.address:
        return exits.enter_context(RayTaskRunner(address=config.address))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    return exits.enter_context(
        RayTaskRunner(
            init_kwargs={"num_cpus": _num_processes(config), "include_dashboard": False},
        )
    )


def _num_processes(config: RowChecksConfig) -> int:
    return config.num_processes or len(os.sched_getaffinity(0))
