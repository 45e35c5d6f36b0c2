"""Every error that alignflow raises on purpose.

AlignflowError
├── InputError            bad input or configuration; exit code 2
│   ├── ConfigError       a recipe, an override, an environment variable
│   ├── DataError         a data file, a model folder, a benchmark file
│   └── StoreError        an artifact store that can't be read or written as configured
│       └── StoreAwayError  one that doesn't answer now, and may later
├── CorruptArtifactError  an artifact whose files disagree with its manifest; exit code 1
├── RunStoppedError       the run was cancelled while a stage waited; exit code 1
├── WorkerError           a process that checks rows has ended too early; exit code 1
├── RegistryError        the model registry failed, or changed at every try; exit code 1
├── PrefectError         the Prefect server refused a request; exit code 1
├── StackError           a server of `alignflow up` did not start; exit code 1
├── JobError              a job that failed, with its kind; exit code 1 (2 where the input was bad)
└── SafetyGateError       a verdict that refuses; exit code 3
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from alignflow.jobs.spec import JobFailure


class AlignflowError(Exception):
    """Base of all; its message is one sentence for the person at the terminal."""

    exit_code = 1


class InputError(AlignflowError, ValueError):
    """Something the caller gave is wrong: says what, where, and what to do."""

    exit_code = 2


class ConfigError(InputError):
    """A recipe, an override or an environment variable is wrong."""


class DataError(InputError):
    """A data file, a model folder or a benchmark file is wrong.

    Attributes:
        reason: The reason code of the refusal, such as `empty_file`, where there is one.
    """

    def __init__(self, message: str, *, reason: str | None = None) -> None:
        super().__init__(message)
        self.reason = reason


class StoreError(InputError):
    """The artifact store can't be read or written as configured."""


class StoreAwayError(StoreError):
    """The artifact store doesn't answer; it may when it is asked again."""


class CorruptArtifactError(AlignflowError, RuntimeError):
    """The files of an artifact disagree with its manifest."""


class RegistryError(AlignflowError, RuntimeError):
    """The model registry can't be read or written, or others changed it at every try."""


class PrefectError(AlignflowError, RuntimeError):
    """The Prefect server answered, and refused a request."""


class StackError(AlignflowError, RuntimeError):
    """A server of this machine's stack did not start, or doesn't answer."""


class RunStoppedError(AlignflowError, RuntimeError):
    """The run was cancelled, or another of its stages failed, while this one waited."""


class WorkerError(AlignflowError, RuntimeError):
    """A process that checks rows ended before its work was done."""


class JobError(AlignflowError, RuntimeError):
    """A job failed; `failure` holds its kind, its message and whether a retry may help.

    Args:
        failure: As the run folder has it.
        log: Log that tells more; None where the message says all.
    """

    def __init__(self, failure: "JobFailure", *, log: "Path | None" = None) -> None:
        super().__init__(failure.message if log is None else f"{failure.message} Its log: {log}")
        self.failure = failure
        self.exit_code = 2 if failure.kind.is_input else 1


class SafetyGateError(AlignflowError, RuntimeError):
    """The gate refused the model; the message lists the rules that failed.

    Attributes:
        outcome: What the run came to all the same: scores, report, verdict.
    """

    exit_code = 3

    def __init__(self, message: str, *, outcome: Any = None) -> None:
        super().__init__(message)
        self.outcome = outcome
