"""Which Slurm job runs a run folder's attempt."""

from typing import Literal

from pydantic import PositiveInt, ValidationError

from alignflow.config import Config
from alignflow.errors import ConfigError
from alignflow.jobs.run_folder import RunFolder, write_atomically


class SlurmHandle(Config):
    """Content of `handle.json`."""

    launcher: Literal["slurm"] = "slurm"
    job_id: PositiveInt
    first_attempt: PositiveInt
    """The attempt with which this Slurm job began; each time it is requeued makes another."""
    attempt: PositiveInt

    @classmethod
    def read(cls, folder: RunFolder) -> "SlurmHandle | None":
        """Return the handle in a run folder, None if nothing was submitted there.

        Raises:
            ConfigError: Another launcher started the job.
        """
        try:
            return cls.model_validate_json(folder.handle.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValidationError:
            raise ConfigError(
                f"{folder.handle}: another launcher started this job; use that one for it."
            ) from None

    def write(self, folder: RunFolder) -> None:
        """Replace the handle in a run folder."""
        write_atomically(folder.handle, self.model_dump_json(indent=2) + "\n")
