"""From an exception or an exit status to the kind of failure and one sentence for a person."""

import errno
import re
import signal

from pydantic import ValidationError

from alignflow.errors import AlignflowError, ConfigError, InputError
from alignflow.jobs.spec import FailureKind, JobFailure

_MAX_MESSAGE = 1000

_OUT_OF_MEMORY = re.compile(
    r"(?:CUDA|HIP|XPU) out of memory|can't allocate memory|Cannot allocate memory"
)
_DISK_FULL = re.compile(r"No space left on device|Disk quota exceeded")
_COMMUNICATION = re.compile(
    r"/gloo/|\[?Gloo\b|NCCL error|NCCL WARN|ncclRemoteError|ncclSystemError|ncclInternalError"
    r"|ProcessGroupNCCL|Connection closed by peer|Connection reset by peer|TCPStore"
)
_COMMUNICATION_ERRORS = {"DistError", "DistBackendError", "DistNetworkError", "DistStoreError"}


def make_failure(kind: FailureKind, message: str, log_tail: str = "") -> JobFailure:
    """Return a failure that may be retried if its kind may."""
    return JobFailure(
        kind=kind,
        message=message[:_MAX_MESSAGE],
        retryable=kind.is_retryable,
        log_tail=log_tail,
    )


def failure_of(error: BaseException, log_tail: str = "") -> JobFailure:
    """Return what an exception that ended a rank means."""
    kind = kind_of(error)
    message = _sentence(error)
    if kind is FailureKind.DISK_FULL:
        # Libraries put a long account of their own around it, or in front.
        message = f"The disk is full: free some space, and run it again to go on. {message}"
    return make_failure(kind, message, log_tail)


def kind_of(error: BaseException) -> FailureKind:
    """Return the kind of an exception: its own `kind` if it has one, else by type and text.

    An exception raised while another one was handled counts as that one where its own type says
    nothing, so a full disk is seen through the error of the library that wrote.
    """
    own = getattr(error, "kind", None)
    if isinstance(own, FailureKind):
        return own
    if isinstance(error, ConfigError | ValidationError):
        return FailureKind.BAD_CONFIG
    if isinstance(error, InputError):
        return FailureKind.BAD_DATA
    if isinstance(error, KeyboardInterrupt):
        return FailureKind.CANCELLED
    kind = _kind_of_resource(error)
    behind = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if kind is FailureKind.ERROR and behind is not None:
        return kind_of(behind)
    return kind


def kind_of_text(text: str) -> FailureKind:
    """Return the kind that the last lines of a log speak of."""
    if _OUT_OF_MEMORY.search(text):
        return FailureKind.OUT_OF_MEMORY
    if _DISK_FULL.search(text):
        return FailureKind.DISK_FULL
    if _COMMUNICATION.search(text):
        return FailureKind.COMMUNICATION
    return FailureKind.ERROR


def failure_of_exit(
    code: int, *, who: str, log_tail: str, has_kernel_killed: bool = False
) -> JobFailure:
    """Return what the exit status of a process that left no account means.

    Args:
        code: As `subprocess` gives it: negative is the signal that killed the process.
        who: The process, as a noun at the start of a sentence.
        log_tail: Last lines of its log.
        has_kernel_killed: Whether the kernel's out-of-memory killer struck while the job ran.
    """
    if code == -signal.SIGKILL and has_kernel_killed:
        message = (
            f"{who} was killed by the kernel: the machine, or its container, ran out of memory."
        )
        return make_failure(FailureKind.OUT_OF_MEMORY, message, log_tail)
    if code in (-signal.SIGKILL, -signal.SIGTERM):
        message = f"{who} was killed from outside by signal {-code}."
        return make_failure(FailureKind.NODE_LOST, message, log_tail)
    last = next((line.strip() for line in reversed(log_tail.splitlines()) if line.strip()), "")
    how = f"was stopped by {_signal_name(-code)}" if code < 0 else f"exited with code {code}"
    message = f"{who} {how} and left no result" + (f"; its last line is: {last}" if last else ".")
    return make_failure(kind_of_text(log_tail), message, log_tail)


def _kind_of_resource(error: BaseException) -> FailureKind:
    names = {base.__name__ for base in type(error).__mro__}
    text = str(error)
    if names & {"MemoryError", "OutOfMemoryError"} or _OUT_OF_MEMORY.search(text):
        return FailureKind.OUT_OF_MEMORY
    is_full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if is_full or _DISK_FULL.search(text):
        return FailureKind.DISK_FULL
    if names & _COMMUNICATION_ERRORS or isinstance(error, ConnectionError):
        return FailureKind.COMMUNICATION
    if isinstance(error, RuntimeError) and _COMMUNICATION.search(text):
        return FailureKind.COMMUNICATION
    return FailureKind.ERROR


def _sentence(error: BaseException) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, AlignflowError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
