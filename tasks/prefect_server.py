"""A Prefect server for the time of one run, where the settings name none.

Prefect would start one by itself, but only after it imported the whole server into this process.
Here the server's process starts at once, and this one imports the pipeline meanwhile: on two cores
a run begins 6 s earlier.
"""

import atexit
import os
import re
import signal
import socket
import subprocess
import sys
import time
from tempfile import TemporaryFile
from urllib.error import URLError
from urllib.request import urlopen

from alignflow.errors import ConfigError
from alignflow.jobs.processes import die_with_parent

_START_TIMEOUT_S = 120.0
_STOP_TIMEOUT_S = 5.0
_ENVIRONMENT = {
    "PREFECT_UI_ENABLED": "0",
    # What Prefect sets for its own: no services of a server that lives on.
    "PREFECT__SERVER_EPHEMERAL": "1",
    "PREFECT__SERVER_FINAL": "1",
}
# The last line of a traceback.
_ERROR_LINE = re.compile(r"^[\w.]+(?:Error|Exception): .+$", re.MULTILINE)
_temporary_urls: set[str] = set()


class TemporaryServer:
    """A server's process, which ends when this process leaves."""

    def __init__(self) -> None:
        """Start the process so that Ctrl-C on the terminal doesn't end it.

        The terminal interrupts the whole process group, and a server that ended first would leave
        the run without a place to record how it ended.
        """
        self._url = f"http://127.0.0.1:{_free_port()}/api"
        self._log = TemporaryFile()  # noqa: SIM115 (open as long as the process runs)
        # A blocked signal stays blocked in the new process.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process = subprocess.Popen(
                self._command(),
                env={**os.environ, **_ENVIRONMENT},
                stdout=self._log,
                stderr=self._log,
                preexec_fn=die_with_parent,  # also where this process is killed and can't end it
            )
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        atexit.register(self._stop)

    def use(self) -> None:
        """Wait until the server answers, and make it the one that Prefect talks to.

        Raises:
            ConfigError: It ended, or didn't answer in time.
        """
        from prefect.context import refresh_global_settings_context

        deadline = time.monotonic() + _START_TIMEOUT_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise ConfigError(
                    f"Prefect's temporary server did not start ({self._reason()}); see that "
                    "PREFECT_HOME can be written, or set PREFECT_API_URL to a server of yours."
                )
            time.sleep(0.05)
        os.environ["PREFECT_API_URL"] = self._url
        _temporary_urls.add(self._url)
        refresh_global_settings_context()

    def _command(self) -> list[str]:
        port = self._url.rpartition(":")[2].removesuffix("/api")
        return [
            *(sys.executable, "-m", "uvicorn", "--factory", "prefect.server.api.server:create_app"),
            *("--host", "127.0.0.1", "--port", port),
            *("--log-level", "error", "--lifespan", "on"),
        ]

    def _answers(self) -> bool:
        try:
            with urlopen(f"{self._url}/health", timeout=1):
                return True
        except (URLError, OSError):
            return False

    def _reason(self) -> str:
        self._log.seek(0)
        errors = _ERROR_LINE.findall(self._log.read().decode(errors="replace"))
        return errors[-1] if errors else "it gave no reason"

    def _stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()


def start_prefect() -> TemporaryServer | None:
    """Start a server where Prefect's settings, by environment or profile, name none."""
    from prefect.settings import PREFECT_API_URL

    return TemporaryServer() if PREFECT_API_URL.value() is None else None


def is_temporary(api_url: str) -> bool:
    """Whether a server goes when this process does: its pages can't be opened later."""
    return api_url in _temporary_urls


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
