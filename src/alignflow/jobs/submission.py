"""What every launcher does around a submission."""

from collections.abc import Iterator
from contextlib import contextmanager

from alignflow.errors import ConfigError
from alignflow.jobs.run_folder import RunFolder
from alignflow.jobs.spec import JobSpec


@contextmanager
def submission(spec: JobSpec, folder: RunFolder) -> Iterator[int]:
    """Hold the right to start the job of a run folder, which is made where it isn't there.

    Yields the descriptor that carries the lock.

    Raises:
        ConfigError: The folder can't be written or is another job's.
    """
    try:
        folder.create()
        with folder.submission() as lock:
            if folder.handle.exists() and (owner := folder.read_spec().name) != spec.name:
                raise ConfigError(
                    f"{folder.path}: belongs to job {owner}, not {spec.name}; use another."
                )
            yield lock
    except OSError as error:
        raise ConfigError(
            f"{error.filename or folder.path}: the run folder can't be written "
            f"({error.strerror}); make room or choose another workspace."
        ) from error
