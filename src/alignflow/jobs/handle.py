"""What a launcher writes about the attempt that it started."""

from typing import Self

from pydantic import PositiveInt, ValidationError

from alignflow.config import Config
from alignflow.errors import ConfigError
from alignflow.jobs.run_folder import RunFolder, write_atomically


class JobHandle(Config):
    """Content of `handle.json`; each launcher adds how it finds the attempt again."""

    launcher: str
    attempt: PositiveInt

    @classmethod
    def read(cls, folder: RunFolder) -> Self | None:
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
