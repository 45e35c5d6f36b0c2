"""The first process of a pod: `python -m alignflow.jobs.kubernetes.pod RUN_FOLDER FIRST_ATTEMPT`.

It starts the agent, copies what that prints into the launcher's log, passes on that the job has to
stop, leaves a record where the agent could not, and says by its exit status whether the pod is to
be started again.
"""

import os
import select
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import BinaryIO

from alignflow.jobs.attempt import now, say
from alignflow.jobs.failures import failure_of_exit
from alignflow.jobs.kubernetes.attempts import Member, goes_on, join
from alignflow.jobs.kubernetes.config import KubernetesConfig
from alignflow.jobs.kubernetes.handle import KubernetesHandle
from alignflow.jobs.kubernetes.launcher import CONFIG_NAME
from alignflow.jobs.kubernetes.names import ADDRESS_VARIABLE, JOB_VARIABLE, RESTART_CODE
from alignflow.jobs.processes import die_with_parent
from alignflow.jobs.run_folder import ATTEMPT_MARK, RunFolder
from alignflow.jobs.spec import JobSpec

_POLL_S = 0.2
_TELL_EVERY_S = 1.0
# A pod's name is known to the others when its Service is, seconds after the first of them starts.
_NAME_S = 300.0


class _Signals:
    """Whether the pod was told to end."""

    def __init__(self) -> None:
        self.is_told = False

    def install(self) -> None:
        """Note SIGTERM from now on; the agent answers it."""

        def on_sigterm(number: int, frame: FrameType | None) -> None:
            self.is_told = True

        signal.signal(signal.SIGTERM, on_sigterm)


def main() -> None:
    """Run one pod of the job whose run folder is the first argument."""
    signals = _Signals()
    signals.install()
    folder = RunFolder(Path(sys.argv[1]))
    spec = folder.read_spec()
    config = KubernetesConfig.model_validate_json((folder.path / CONFIG_NAME).read_text())
    pod = Member(
        job=os.environ[JOB_VARIABLE],
        first_attempt=int(sys.argv[2]),
        index=int(os.environ["JOB_COMPLETION_INDEX"]),
        name=socket.gethostname(),
        may_restart=config.requeue,
    )
    began = time.time()
    attempt = join(folder, spec, _first_handle(config, pod), pod, is_told=lambda: signals.is_told)
    if attempt is None:
        raise SystemExit(_status_without_attempt(folder, signals))
    code = _run(folder, spec, pod, attempt, signals)
    raise SystemExit(_status(folder, spec, config, attempt, code, since=began))


def _first_handle(config: KubernetesConfig, pod: Member) -> KubernetesHandle:
    return KubernetesHandle(
        template=config.template,
        context=config.context,
        namespace=config.namespace,
        name=pod.job,
        first_attempt=pod.first_attempt,
        attempt=pod.first_attempt,
    )


def _run(folder: RunFolder, spec: JobSpec, pod: Member, attempt: int, signals: _Signals) -> int:
    """Return the exit status of the agent; its output goes to the pod's log and the launcher's."""
    agent = [sys.executable, "-m", "alignflow.jobs.kubernetes.node", str(folder.path)]
    command = [*agent, str(attempt), str(pod.index)]
    with folder.launcher_log.open("ab", buffering=0) as log:
        if pod.index == 0:
            _print(f"{ATTEMPT_MARK}{attempt}, {now()}, {pod.job}\n".encode(), log)
        if spec.nodes > 1:
            _wait_for_name(os.environ.get(ADDRESS_VARIABLE), signals)
        # preexec_fn is safe here: this process has one thread.
        child = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, preexec_fn=_prepare
        )
        assert child.stdout is not None
        os.set_blocking(child.stdout.fileno(), False)
        told_at = 0.0
        while child.poll() is None:
            # Again and again: before it is ready the agent doesn't hear.
            if signals.is_told and time.monotonic() - told_at > _TELL_EVERY_S:
                told_at = time.monotonic()
                child.send_signal(signal.SIGTERM)
            select.select([child.stdout], [], [], _POLL_S)
            _print(child.stdout.read() or b"", log)
        _print(child.stdout.read() or b"", log)
    return child.returncode


def _prepare() -> None:
    """Let the agent end with this process, and not by a SIGTERM that comes while it starts."""
    die_with_parent()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _print(data: bytes, log: BinaryIO) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
    with suppress(OSError):  # a full disk; the pod's own log has it
        log.write(data)


def _wait_for_name(address: str | None, signals: _Signals) -> None:
    """Wait until the pod of index 0 has a name; torchrun says what is wrong if it never does."""
    deadline = time.monotonic() + _NAME_S
    while address is not None and time.monotonic() < deadline and not signals.is_told:
        with suppress(OSError):
            socket.getaddrinfo(address, None)
            return
        time.sleep(_POLL_S)


def _status_without_attempt(folder: RunFolder, signals: _Signals) -> int:
    if folder.read_result() is not None:
        return 0
    is_disturbed = signals.is_told and folder.requested_stop() is None
    return RESTART_CODE if is_disturbed else 1


def _status(
    folder: RunFolder,
    spec: JobSpec,
    config: KubernetesConfig,
    attempt: int,
    code: int,
    *,
    since: float,
) -> int:
    """Return the exit status that tells Kubernetes whether to start the pod again."""
    if code == 0 and folder.requested_stop() is None:
        return 0
    handle = KubernetesHandle.read(folder)
    if handle is not None and handle.attempt > attempt:
        return RESTART_CODE  # the others have begun without this pod, which lost touch with them
    if folder.read_result() is not None:
        return 0
    if folder.read_failure() is None:
        who, tail = f"The agent of {spec.module}", folder.log_tail(folder.launcher_log)
        folder.write_failure(failure_of_exit(code, who=who, log_tail=tail))
    failure = folder.read_failure()
    assert failure is not None
    may_go_on = config.requeue and goes_on(folder, spec, failure)
    # An attempt that saved nothing would lead to one that does no better.
    has_come_on = any(entry.stat().st_mtime > since for entry in folder.checkpoints.iterdir())
    if may_go_on and has_come_on:
        say(f"{now()} to be started again")
        return RESTART_CODE
    return 1


if __name__ == "__main__":
    main()
