"""The run folder: the only channel between a job and whoever waits for it.

    job.json          the JobSpec
    handle.json       the launcher's own id of the running attempt, on disk before anything waits
    metrics.jsonl     one JSON object a line, appended by rank 0
    heartbeat         touched by rank 0 while it lives
    log/              rank-N.txt of each rank, launcher.txt of whatever started them
    checkpoints/      what a next attempt resumes from
    output/           the artifact's files, complete when result.json exists
    result.json       exactly one of these two,
    failure.json      written atomically at the end
    cancel.json       a request to stop, with the time the job has left

A run folder outlives attempts: a job that is started again keeps its metrics, logs and checkpoints,
while the outcome of the attempt before is removed.
"""

import fcntl
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from alignflow.config import Config
from alignflow.errors import DataError
from alignflow.jobs.spec import FailureKind, JobFailure, JobResult, JobSpec

ATTEMPT_MARK = "=== attempt "
"""Start of the line that opens an attempt in a log."""

_TAIL_LINES = 20
_TAIL_BYTES = 32_768
_RESERVE_BYTES = 65_536
# What a rank reports when another one brought it down; any other kind is nearer to the cause.
_SECONDARY = (FailureKind.CANCELLED, FailureKind.COMMUNICATION)

ConfigT = TypeVar("ConfigT", bound=Config)


class RunFolder:
    """One job's folder; every file in it is either append-only or replaced atomically."""

    def __init__(self, path: Path) -> None:
        # Processes are told by this path which job they belong to: one spelling only.
        self.path = path.resolve()

    @property
    def checkpoints(self) -> Path:
        """Folder of resume checkpoints."""
        return self.path / "checkpoints"

    @property
    def output(self) -> Path:
        """Folder of the artifact's files."""
        return self.path / "output"

    @property
    def log(self) -> Path:
        """Folder of the logs."""
        return self.path / "log"

    @property
    def launcher_log(self) -> Path:
        """Log of the launcher: attempts, queueing, and what ran outside of the ranks."""
        return self.log / "launcher.txt"

    @property
    def metrics(self) -> Path:
        """File of the metrics, one JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def handle(self) -> Path:
        """File of the launcher's id."""
        return self.path / "handle.json"

    def rank_log(self, rank: int) -> Path:
        """Return the file that holds stdout and stderr of a rank."""
        return self.log / f"rank-{rank}.txt"

    def create(self) -> None:
        """Make the folder and those in it; what already stands there stays."""
        for folder in (self.checkpoints, self.output, self.log):
            folder.mkdir(parents=True, exist_ok=True)

    # -- the spec and the attempt ----------------------------------------------------------------

    def begin_attempt(self, spec: JobSpec) -> None:
        """Write the spec and remove what the attempt before left about its end."""
        with self._outcome():
            for name in ("result.json", "failure.json", "cancel.json", "heartbeat"):
                (self.path / name).unlink(missing_ok=True)
            self._reserve_space()
        write_atomically(self.path / "job.json", _to_json(spec))

    def read_spec(self) -> JobSpec:
        """Return the spec.

        Raises:
            DataError: The file is missing or is not a JobSpec.
        """
        spec = _read(JobSpec, self.path / "job.json")
        if spec is None:
            raise DataError(f"{self.path}: there is no job.json; give the run folder of a job.")
        return spec

    @contextmanager
    def submission(self) -> Iterator[int]:
        """Hold the right to start an attempt; yields the descriptor that carries the lock.

        Whoever inherits the descriptor shares the lock until both have closed it.
        """
        with _locked(self.path / ".submit.lock") as descriptor:
            yield descriptor

    # -- what a running job tells ----------------------------------------------------------------

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Append one line to `metrics.jsonl`; NaN and infinity become null, which JSON can hold."""
        line = json.dumps({name: _json_number(value) for name, value in row.items()}).encode()
        with self.metrics.open("ab+") as file:
            if file.tell() > 0:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # an attempt was killed in the middle of a line
                    line = b"\n" + line
            file.write(line + b"\n")

    def metric_reader(self) -> "MetricReader":
        """Return a reader that starts at the first row."""
        return MetricReader(self.metrics)

    def beat(self) -> None:
        """Show that the job lives."""
        (self.path / "heartbeat").touch()

    def last_beat(self) -> float | None:
        """Return the Unix time of the last heartbeat of this attempt, None before the first."""
        try:
            return (self.path / "heartbeat").stat().st_mtime
        except FileNotFoundError:
            return None

    # -- cancelling ------------------------------------------------------------------------------

    def request_stop(self, grace_s: float, kind: FailureKind = FailureKind.CANCELLED) -> None:
        """Ask the job to stop within `grace_s` seconds; the job still has to be signalled."""
        request = StopRequest(kind=kind, grace_s=grace_s)
        write_atomically(self.path / "cancel.json", _to_json(request))

    def requested_stop(self) -> "StopRequest | None":
        """Return the request to stop this attempt, None where there is none."""
        return _read(StopRequest, self.path / "cancel.json")

    # -- the outcome -----------------------------------------------------------------------------

    def write_result(self, result: JobResult) -> bool:
        """Record that the job ended well; False if a failure was recorded before."""
        with self._outcome():
            if (self.path / "failure.json").exists():
                return False
            self._reserve.unlink(missing_ok=True)
            write_atomically(self.path / "result.json", _to_json(result))
            return True

    def write_failure(self, failure: JobFailure) -> None:
        """Record why the job failed; the first cause stays.

        A rank that lost its connection or was told to stop because another one failed may be the
        first to get here: its account gives way to any other kind.
        """
        with self._outcome():
            earlier = self.read_failure()
            if earlier is None or _closeness(failure) > _closeness(earlier):
                self._replace_failure(failure)

    def overrule_failure(self, failure: JobFailure) -> None:
        """Record a failure over whatever a rank took for the cause; a result stays."""
        with self._outcome():
            self._replace_failure(failure)

    def read_result(self) -> JobResult | None:
        """Return the result, None if there is none yet."""
        return _read(JobResult, self.path / "result.json")

    def read_failure(self) -> JobFailure | None:
        """Return the failure, None if there is none yet."""
        return _read(JobFailure, self.path / "failure.json")

    def has_outcome(self) -> bool:
        """Whether result or failure is recorded; what still runs then has nothing left to do."""
        return any((self.path / name).exists() for name in ("result.json", "failure.json"))

    def last_attempt(self, log: Path) -> str:
        """Return the end of a log, at most 32 KiB, as far as the newest attempt wrote it."""
        try:
            with log.open("rb") as file:
                file.seek(0, os.SEEK_END)
                file.seek(max(0, file.tell() - _TAIL_BYTES))
                text = file.read().decode(errors="replace")
        except FileNotFoundError:
            return ""
        _, mark, attempt = f"\n{text}".rpartition(f"\n{ATTEMPT_MARK}")
        return attempt.partition("\n")[2] if mark else attempt.removeprefix("\n")

    def log_tail(self, log: Path) -> str:
        """Return the last lines that the newest attempt wrote to a log."""
        return "\n".join(self.last_attempt(log).splitlines()[-_TAIL_LINES:])

    def _replace_failure(self, failure: JobFailure) -> None:
        if not (self.path / "result.json").exists():
            self._reserve.unlink(missing_ok=True)
            write_atomically(self.path / "failure.json", _to_json(failure))

    @property
    def _reserve(self) -> Path:
        return self.path / ".reserve"

    def _reserve_space(self) -> None:
        """Set space aside for the outcome, so that a full disk can still be reported."""
        with self._reserve.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, _RESERVE_BYTES)

    @contextmanager
    def _outcome(self) -> Iterator[None]:
        with _locked(self.path / ".outcome.lock"):
            yield


class StopRequest(Config):
    """Content of `cancel.json`."""

    kind: FailureKind
    """What the end is to be recorded as."""
    grace_s: float
    """Seconds that the job may take to save a checkpoint."""


class MetricReader:
    """Reads the rows that have come since the last call, while the job still writes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def read_new(self) -> list[dict[str, Any]]:
        """Return the rows whose line is complete and new.

        A line that a killed attempt left unfinished is passed over.
        """
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                chunk = file.read()
        except FileNotFoundError:
            return []
        complete = chunk[: chunk.rfind(b"\n") + 1]
        self._offset += len(complete)
        return [row for line in complete.splitlines() if (row := _parse_row(line)) is not None]


def write_atomically(path: Path, text: str) -> None:
    """Replace a file so that a reader, or a crash, sees either the old content or the new."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).rename(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)  # the rename itself must survive a power cut
    finally:
        os.close(folder)


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def _read(model: type[ConfigT], path: Path) -> ConfigT | None:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "the file"
        raise DataError(f"{path}: not a {model.__name__}: {field}: {first['msg']}.") from None


def _to_json(config: Config) -> str:
    return config.model_dump_json(indent=2) + "\n"


def _closeness(failure: JobFailure) -> int:
    """Return how near to the cause a rank's account is."""
    return _SECONDARY.index(failure.kind) if failure.kind in _SECONDARY else len(_SECONDARY)


def _json_number(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _parse_row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None
