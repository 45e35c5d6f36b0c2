import errno
import signal

import pytest
import torch
from pydantic import ValidationError

from alignflow.errors import ConfigError, DataError
from alignflow.jobs.failures import failure_of, failure_of_exit, kind_of
from alignflow.jobs.spec import FailureKind, JobSpec


class DivergedError(RuntimeError):
    kind = FailureKind.DIVERGED


def gloo_error() -> RuntimeError:
    return RuntimeError(
        "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:538] Connection closed by peer "
        "[127.0.0.1]:38183"
    )


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (DivergedError("loss is NaN"), FailureKind.DIVERGED),
        (ConfigError("no such stage"), FailureKind.BAD_CONFIG),
        (DataError("no rows"), FailureKind.BAD_DATA),
        (KeyboardInterrupt(), FailureKind.CANCELLED),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"),
            FailureKind.OUT_OF_MEMORY,
        ),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), FailureKind.OUT_OF_MEMORY),
        (MemoryError(), FailureKind.OUT_OF_MEMORY),
        (OSError(errno.ENOSPC, "No space left on device"), FailureKind.DISK_FULL),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), FailureKind.DISK_FULL),
        (Exception("I/O error: No space left on device (os error 28)"), FailureKind.DISK_FULL),
        (gloo_error(), FailureKind.COMMUNICATION),
        (torch.distributed.DistNetworkError("the client timed out"), FailureKind.COMMUNICATION),
        (torch.distributed.DistBackendError("NCCL error"), FailureKind.COMMUNICATION),
        (ConnectionResetError("reset"), FailureKind.COMMUNICATION),
        (ValueError("unknown backend, choose Gloo or NCCL error handling"), FailureKind.ERROR),
        (FileNotFoundError(errno.ENOENT, "No such file"), FailureKind.ERROR),
    ],
)
def test_kind_of_an_exception(error: BaseException, kind: FailureKind) -> None:
    assert kind_of(error) is kind


def test_config_that_does_not_fit_is_bad_config() -> None:
    with pytest.raises(ValidationError) as caught:
        JobSpec.model_validate({"name": "sft"})
    assert kind_of(caught.value) is FailureKind.BAD_CONFIG


def raise_from(error: Exception, behind: Exception, *, is_hidden: bool) -> None:
    try:
        raise behind
    except Exception as caught:
        raise error from None if is_hidden else caught


def test_cause_is_seen_through_the_error_of_a_library() -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(RuntimeError) as caught:
        raise_from(RuntimeError("could not save the checkpoint"), full, is_hidden=False)
    assert kind_of(caught.value) is FailureKind.DISK_FULL


def test_full_disk_is_told_first_whatever_a_library_puts_in_front() -> None:
    error = Exception(f"{'line of a traceback; ' * 100}OSError: No space left on device")
    assert failure_of(error).message.startswith("The disk is full: free some space")


def test_context_that_was_ruled_out_does_not_count() -> None:
    with pytest.raises(ValueError, match="wrong shape") as caught:
        raise_from(ValueError("wrong shape"), ConnectionError("no server"), is_hidden=True)
    assert kind_of(caught.value) is FailureKind.ERROR


def test_message_is_one_sentence_and_own_errors_keep_theirs() -> None:
    assert failure_of(DataError("a.jsonl: no rows.")).message == "a.jsonl: no rows."
    assert failure_of(KeyError("x")).message == "KeyError: 'x'"
    assert failure_of(ValueError("two\n  lines")).message == "ValueError: two lines"
    assert failure_of(gloo_error()).retryable
    assert not failure_of(KeyError("x")).retryable


def test_kill_is_out_of_memory_only_with_evidence() -> None:
    plain = failure_of_exit(-signal.SIGKILL, who="Rank 1", log_tail="")
    assert plain.kind is FailureKind.NODE_LOST
    assert plain.message == "Rank 1 was killed from outside by signal 9."
    evident = failure_of_exit(-signal.SIGKILL, who="Rank 1", log_tail="", has_kernel_killed=True)
    assert evident.kind is FailureKind.OUT_OF_MEMORY
    assert not evident.retryable


def test_last_line_of_the_log_speaks_where_nothing_else_does() -> None:
    aborted = failure_of_exit(
        -signal.SIGABRT, who="Rank 0", log_tail="[rank0] ProcessGroupNCCL: watchdog timeout\n"
    )
    assert aborted.kind is FailureKind.COMMUNICATION
    assert aborted.message == (
        "Rank 0 was stopped by SIGABRT and left no result; "
        "its last line is: [rank0] ProcessGroupNCCL: watchdog timeout"
    )
    silent = failure_of_exit(3, who="Rank 0", log_tail="")
    assert silent.message == "Rank 0 exited with code 3 and left no result."
    assert silent.kind is FailureKind.ERROR
