"""Starts, stops and looks at a stack."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from alignflow.artifacts.files import os_errors_as
from alignflow.errors import ConfigError, StackError
from alignflow.locks import FileLock
from alignflow.stack import environment
from alignflow.stack.config import StackConfig, read_config, write_config
from alignflow.stack.credentials import credentials
from alignflow.stack.ports import PortClaim, check_ports
from alignflow.stack.records import Record, ask_to_stop, read_record, start, wait_until_gone
from alignflow.stack.services import Service, layers

_POLL_S = 0.1
_LOG_LINES = 15
_ENDS_US = (signal.SIGTERM, signal.SIGHUP)

Tell = Callable[[str], None]


class ServiceState(NamedTuple):
    """What `alignflow status` says of a service."""

    service: str
    state: str
    """`healthy`, `unhealthy` (runs and doesn't answer), `dead` (ended by itself), `stopped`."""
    address: str
    pid: int | None
    since: str | None
    log: str
    reason: str
    """Why it is not healthy."""


class Stack:
    """The stack of a workspace.

    Args:
        workspace: Folder of runs, in which `stack/` is that of the servers.
        tell: Is given a line at each step.
    """

    def __init__(self, workspace: Path, tell: Tell) -> None:
        self._workspace = workspace.absolute()
        self._folder = self._workspace / "stack"
        self._tell = tell

    @property
    def credentials_file(self) -> Path:
        """Where the credentials are."""
        return self._folder / "credentials.env"

    def up(self, options: dict[str, Any], *, timeout_s: float) -> None:
        """Start what doesn't run yet, and return when all of it answers.

        Args:
            options: Of `StackConfig`; None for what stays as it was, or is by itself.
            timeout_s: How long a service may take until it answers.

        Raises:
            ConfigError: An option doesn't fit what is there, or a port is taken.
            StackError: A service ended or doesn't answer; what was started now is stopped again.
        """
        self._make_folder()
        with self._alone(), _ended_in_order():
            config = self._config(options)
            services = self._layers(config, self._credentials())
            self._check_ports(services)
            write_config(config, self._config_file)
            started: list[Service] = []
            try:
                for layer in services:
                    self._up_layer(layer, started, timeout_s)
            except BaseException:
                self._stop_again(started)
                raise

    def down(self) -> None:
        """Stop what runs, those that need others first."""
        config = read_config(self._config_file)
        if config is None:
            self._tell("There is no stack here.")
            return
        with self._alone():
            for layer in reversed(self._layers(config, self._credentials())):
                self._down(layer)

    def states(self) -> list[ServiceState]:
        """Look at every service.

        Raises:
            ConfigError: There is no stack in the workspace.
        """
        config = self._existing_config()
        services = self._layers(config, self._credentials())
        return [self._state(service) for layer in services for service in layer]

    def clients(self) -> dict[str, str]:
        """Return the variables by which clients find the servers.

        Raises:
            ConfigError: There is no stack in the workspace.
        """
        config = self._existing_config()
        return environment.clients(self._credentials(), config)

    # What it consists of -------------------------------------------------------------------------

    @property
    def _config_file(self) -> Path:
        return self._folder / "stack.json"

    def _make_folder(self) -> None:
        with os_errors_as(ConfigError, f"write to the workspace {self._workspace}"):
            # PostgreSQL may run as another user, who has to get through.
            self._folder.mkdir(mode=0o711, parents=True, exist_ok=True)
            (self._folder / "log").mkdir(mode=0o700, exist_ok=True)

    def _config(self, options: dict[str, Any]) -> StackConfig:
        before = read_config(self._config_file)
        config = (before or StackConfig()).changed(options)
        if before is None or config == before:
            return config
        if config.full != before.full:
            raise ConfigError(
                f"The stack in {self._folder} was made without --full, and its data stays in its "
                "SQLite files; give another --workspace."
            )
        if running := [s.title for s in self._running(before)]:
            raise ConfigError(
                f"{running[0]} runs on the port that it had; say alignflow down before you give "
                "another."
            )
        return config

    def _existing_config(self) -> StackConfig:
        config = read_config(self._config_file)
        if config is None:
            raise ConfigError(f"There is no stack in {self._workspace}; say alignflow up.")
        return config

    def _credentials(self) -> dict[str, str]:
        try:
            return credentials(self.credentials_file)
        except PermissionError as error:
            raise ConfigError(str(error)) from None

    def _layers(self, config: StackConfig, values: dict[str, str]) -> list[list[Service]]:
        return layers(config, values, workspace=self._workspace, folder=self._folder)

    def _running(self, config: StackConfig) -> Iterator[Service]:
        for layer in self._layers(config, self._credentials()):
            for service in layer:
                if self._process(service) is not None:
                    yield service

    def _pid_file(self, service: Service) -> Path:
        return self._folder / f"{service.name}.pid"

    def _log(self, service: Service) -> Path:
        return self._folder / "log" / f"{service.name}.log"

    def _record(self, service: Service) -> Record | None:
        return read_record(self._pid_file(service))

    def _process(self, service: Service) -> Record | None:
        """Return the record of a service that runs."""
        record = self._record(service)
        return record if record is not None and record.process() is not None else None

    # Up ------------------------------------------------------------------------------------------

    def _check_ports(self, services: list[list[Service]]) -> None:
        """See that what is to be started can listen, before anything is."""
        waiting = [s for layer in services for s in layer if self._process(s) is None]
        for service in waiting:
            # What a dead process left behind would still have its port.
            if record := self._record(service):
                wait_until_gone(record, self._pid_file(service), grace_s=0)
        check_ports([PortClaim(port, s.title, s.port_option) for s in waiting for port in s.ports])

    def _up_layer(self, layer: list[Service], started: list[Service], timeout_s: float) -> None:
        for service in layer:
            if self._process(service) is None:
                started.append(service)
                self._start(service)
        for service in layer:
            self._wait(service, timeout_s)
            # Again for what runs already: an earlier start may have been killed before it.
            service.settle()
            what = "answers" if service in started else "runs already"
            self._tell(f"{service.title} {what}: {service.address}")

    def _start(self, service: Service) -> None:
        service.prepare()
        start(
            service.command,
            environment=service.environment,
            folder=service.folder,
            log=self._log(service),
            pid_file=self._pid_file(service),
            user=service.user,
        )

    def _wait(self, service: Service, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while True:
            record = self._process(service)
            if record is None:
                raise self._failure(service, "ended before it answered")
            reason = service.look(record)()
            if reason is None:
                return
            if time.monotonic() > deadline:
                raise self._failure(
                    service,
                    f"does not answer at {service.address} after {timeout_s:g} s ({reason})",
                )
            time.sleep(_POLL_S)

    def _failure(self, service: Service, what: str) -> StackError:
        log = self._log(service)
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES:]
        return StackError(f"{service.title} {what}; the end of {log}:\n" + "\n".join(lines))

    def _stop_again(self, started: list[Service]) -> None:
        """Stop what a start that failed, or was interrupted, has started."""
        if not started:
            return
        self._tell("Stopping what was started.")
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C would leave some
        try:
            for service in reversed(started):
                self._down([service])
        finally:
            signal.signal(signal.SIGINT, before)

    # Down and status -----------------------------------------------------------------------------

    def _down(self, layer: list[Service]) -> None:
        records = [(service, record) for service in layer if (record := self._record(service))]
        for service, record in records:
            ask_to_stop(record, service.stop_signal)
        for service, record in records:
            was_alive = record.process() is not None
            ended = wait_until_gone(record, self._pid_file(service), grace_s=service.grace_s)
            how = "" if ended else f" (killed after {service.grace_s:g} s)"
            self._tell(f"{service.title} {'has stopped' if was_alive else 'had ended'}{how}.")

    def _state(self, service: Service) -> ServiceState:
        record = self._record(service)
        state, reason = "stopped", "not started"
        if record is not None and record.process() is None:
            state, reason = "dead", "it ended by itself; alignflow up starts it again"
        elif record is not None:
            silent = service.look(record)()
            state, reason = ("healthy", "") if silent is None else ("unhealthy", silent)
        return ServiceState(
            service=service.name,
            state=state,
            address=service.address,
            pid=record.pid if record else None,
            since=record.since if record else None,
            log=str(self._log(service)),
            reason=reason,
        )

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep a second command out while this one starts or stops."""
        path = self._folder / "lock"
        lock = FileLock(path)
        if not lock.try_acquire():
            holder = path.read_text(encoding="utf-8", errors="replace")
            raise ConfigError(
                f"Another alignflow up or down is at work here ({holder}); wait for it."
            )
        try:
            yield
        finally:
            lock.release()


@contextmanager
def _ended_in_order() -> Iterator[None]:
    """Have a request to end, such as that of a terminal that closes, count as Ctrl-C."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    # What was told to be ignored, as nohup does, stays so.
    before = {number: signal.getsignal(number) for number in _ENDS_US}
    heard = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
    for number in heard:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in heard:
            signal.signal(number, before[number])
