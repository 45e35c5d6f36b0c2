"""What the processes of a job run: the main function, watched.

`alignflow.training` and `alignflow.evaluation` hand their main function to `run_job`. It gives them
a heartbeat, turns the exception that ends them into `failure.json`, and SIGTERM into a flag:

    while step < num_steps:
        train_step(...)
        if stop_requested():  # ranks see it at different steps: agree before acting on it
            save_checkpoint(...)
            raise JobStoppedError(f"stopped after step {step}")
"""

import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import NoReturn, TypeVar

from pydantic import ValidationError

from alignflow.config import Config
from alignflow.errors import AlignflowError, ConfigError, DataError, InputError
from alignflow.jobs.failures import failure_of
from alignflow.jobs.processes import (
    JOB_VARIABLE,
    SUPERVISOR_VARIABLE,
    die_with_parent,
    read_process,
)
from alignflow.jobs.run_folder import ATTEMPT_MARK, RunFolder
from alignflow.jobs.spec import FailureKind, JobResult, JobSpec

ATTEMPT_VARIABLE = "ALIGNFLOW_JOB_ATTEMPT"
"""Number of the attempt, from 1."""

ConfigT = TypeVar("ConfigT", bound=Config)

_HEARTBEAT_EVERY_S = 5.0

_stop = threading.Event()


class JobStoppedError(AlignflowError, RuntimeError):
    """The job was told to stop and did; what it had done is in its checkpoint."""

    kind = FailureKind.CANCELLED


def stop_requested() -> bool:
    """Whether the job was told to stop; to be asked between steps."""
    return _stop.is_set()


def raise_if_stop_requested() -> None:
    """Leave the work by JobStoppedError if the job was told to stop.

    Raises:
        JobStoppedError: The job was told to stop.
    """
    if stop_requested():
        raise JobStoppedError("The job was told to stop.")


def read_config(folder: RunFolder, spec: JobSpec, model: type[ConfigT]) -> ConfigT:
    """Return the config of a job.

    Raises:
        ConfigError: It doesn't fit the model; the message names the first field that is wrong.
    """
    try:
        return model.model_validate(spec.config)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{folder.path}/job.json: config.{field}: {first['msg']}.") from None


def run_job(main: Callable[[RunFolder, JobSpec], JobResult | None]) -> NoReturn:
    """Run the main function of a job on this rank and exit.

    The run folder is the only argument on the command line, the rank comes from `RANK`. Rank 0
    beats the heart and writes `result.json`; any rank may write `failure.json`. Started by a
    launcher, the rank's output goes to its log; started by hand, it stays on the terminal.

    Raises:
        SystemExit: Always. The code is 0 after a result, 2 after bad input, 1 after any other end.
    """
    folder, spec = _folder_and_spec()
    rank = int(os.environ.get("RANK", "0"))
    with ExitStack() as stack:
        if JOB_VARIABLE in os.environ:
            _die_with_supervisor()
            stack.enter_context(_output_to(folder.rank_log(rank)))
        if rank == 0:
            stack.enter_context(_heartbeat(folder))
        stack.enter_context(_sigterm_as_flag())
        code = _run(main, folder, spec, rank)
    raise SystemExit(code)


def _folder_and_spec() -> tuple[RunFolder, JobSpec]:
    if len(sys.argv) != 2:
        print("The only argument is the run folder of a job.", file=sys.stderr)
        raise SystemExit(InputError.exit_code)
    folder = RunFolder(Path(sys.argv[1]))
    try:
        return folder, folder.read_spec()
    except DataError as error:
        print(error, file=sys.stderr)
        raise SystemExit(error.exit_code) from None


def _run(
    main: Callable[[RunFolder, JobSpec], JobResult | None],
    folder: RunFolder,
    spec: JobSpec,
    rank: int,
) -> int:
    try:
        result = main(folder, spec) or JobResult()
        if rank == 0 and not folder.write_result(_with_memory(result)):
            print("Another rank failed: the result is not recorded.", file=sys.stderr)
            return 1
    except BaseException as error:
        with suppress(OSError):  # the disk of the log may be full; the failure is still recorded
            traceback.print_exc()
            _flush_output()
        folder.write_failure(failure_of(error, folder.log_tail(folder.rank_log(rank))))
        return InputError.exit_code if isinstance(error, InputError) else 1
    return 0


def _with_memory(result: JobResult) -> JobResult:
    """Add the most memory that this process has held, in bytes."""
    # Not getrusage's: a process begins with the peak of the one that started it.
    status = Path("/proc/self/status").read_text()
    (kilobytes,) = re.findall(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    peak = int(kilobytes) * 1024
    return result.replaced(details={**result.details, "peak_memory_bytes": peak})


def _die_with_supervisor() -> None:
    """Die with the process that started this one, even if that happened before we could ask."""
    die_with_parent()
    pid, _, ticks = os.environ[SUPERVISOR_VARIABLE].partition(".")
    supervisor = read_process(int(pid))
    if supervisor is None or supervisor.start_ticks != int(ticks):
        raise SystemExit("The job's supervisor is gone.")


@contextmanager
def _output_to(log: Path) -> Iterator[None]:
    """Append stdout and stderr of this process, and of what it starts, to a log."""
    log.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    header = f"{ATTEMPT_MARK}{os.environ[ATTEMPT_VARIABLE]}, {now}, pid {os.getpid()}\n"
    os.write(descriptor, header.encode())
    before = os.dup(1), os.dup(2)
    _flush_output()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    try:
        yield
    finally:
        _flush_output()
        for number, saved in enumerate(before, start=1):
            os.dup2(saved, number)
            os.close(saved)


def _flush_output() -> None:
    sys.stdout.flush()
    sys.stderr.flush()


@contextmanager
def _heartbeat(folder: RunFolder) -> Iterator[None]:
    """Touch the heartbeat from a thread, so that a long step is no silence."""
    done = threading.Event()

    def beat() -> None:
        while True:
            with suppress(OSError):  # a full disk must not pass for a dead job
                folder.beat()
            if done.wait(_HEARTBEAT_EVERY_S):
                return

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextmanager
def _sigterm_as_flag() -> Iterator[None]:
    def note(number: int, frame: FrameType | None) -> None:
        _stop.set()

    _stop.clear()
    before = signal.signal(signal.SIGTERM, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
