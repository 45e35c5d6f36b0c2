"""Servers of the tests: started, waited for, killed, and started again at the same address."""

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from alignflow.jobs.processes import die_with_parent

_START_TIMEOUT_S = 400.0


@dataclass
class ServerProcess:
    """A server on this machine, in a session of its own; it dies with the tests' process."""

    command: Sequence[str]
    health_url: str
    """Answers 200 when the server is ready."""
    folder: Path
    """Its working directory, with `server.log`."""
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    process: subprocess.Popen[bytes] | None = None

    @contextmanager
    def running(self) -> Iterator["ServerProcess"]:
        """Start it, and kill it at the end."""
        try:
            self.start()
            yield self
        finally:
            self.kill()

    def start(self) -> None:
        """Start it; returns when it answers."""
        self.launch()
        self.wait_until_ready()

    def launch(self) -> None:
        """Start its process, and leave it to itself."""
        self.process = start_process(
            self.command, self.environment, self.folder, self.folder / "server.log"
        )

    def wait_until_ready(self) -> None:
        """Return when it answers.

        Raises:
            AssertionError: It ended, or doesn't answer in time.
        """
        assert self.process is not None
        deadline = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < deadline and self.process.poll() is None:
            if self.answers():
                return
            time.sleep(0.1)
        log_tail = (self.folder / "server.log").read_text(errors="replace")[-2000:]
        raise AssertionError(f"{self.command[0]} did not start:\n{log_tail}")

    def answers(self) -> bool:
        """Whether it is there and ready."""
        try:
            with urllib.request.urlopen(self.health_url, timeout=1) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def kill(self) -> None:
        """Kill it with all its processes, as a power cut does."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def start_process(
    command: Sequence[str], environment: Mapping[str, str], folder: Path, log: Path
) -> subprocess.Popen[bytes]:
    """Start a process in a folder and in a session of its own; it dies with this process."""
    with log.open("ab") as out:
        return subprocess.Popen(
            command,
            env=dict(environment),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
