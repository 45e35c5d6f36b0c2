"""What a dataset artifact says of itself: `card.json`."""

from pathlib import Path
from typing import Self

from pydantic import ValidationError

from alignflow.config import Config
from alignflow.data_validation.config import DataKind, DatasetConfig
from alignflow.data_validation.expectations import ExpectationResult
from alignflow.data_validation.origin import Origin
from alignflow.errors import DataError

CARD_NAME = "card.json"


class Source(Config):
    """One file, or one set of the hub, that rows were read from."""

    uri: str
    sha256: str
    """Of the file; of the rows' JSON where the hub's library read them."""
    bytes: int


class Counts(Config):
    """How many rows there were, and what became of them."""

    read: int = 0
    """Without blank lines: accepted and refused."""
    accepted: int = 0
    refused: int = 0
    skipped: int = 0
    """Blank lines."""
    train: int = 0
    held_out: int = 0
    requeued: int = 0
    """Rows that had been refused, were repaired and passed the row checks."""


class RefusedRow(Config):
    """A refused row as it may be shown."""

    file: str
    line: int
    reason: str
    """A key of `REASONS`."""
    message: str
    row: str
    """How it starts, masked."""


class Card(Config):
    """Where a training set comes from, how it was made, and how it was judged."""

    kind: DataKind
    sources: list[Source]
    counts: Counts
    reasons: dict[str, int]
    """Refused rows by reason code, commonest first."""
    flags: dict[str, int]
    """Accepted rows by flag, commonest first."""
    lengths: dict[str, list[int]]
    """Rows of the sample by the binary digits of `prompt_chars` and `response_chars`."""
    scripts: dict[str, int]
    """Rows of the sample by the script of most letters of their response, commonest first."""
    ratings: dict[str, list[int]]
    """Accepted rows with each rating from 0 to 4, by attribute."""
    requeued: list[Origin]
    """Where the first of the repaired rows were refused."""
    config: DatasetConfig
    """Licence, limits, split and bounds."""
    examples: list[RefusedRow]
    """The first refused rows of each reason."""
    expectations: list[ExpectationResult]

    def save(self, folder: Path) -> None:
        """Write the card into the folder of its set."""
        (folder / CARD_NAME).write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read the card of a set.

        Raises:
            DataError: The folder is no dataset.
        """
        try:
            return cls.model_validate_json((folder / CARD_NAME).read_bytes())
        except (OSError, ValidationError):
            raise DataError(
                f"{folder}: not a dataset, for it has no readable {CARD_NAME}; ingest one first."
            ) from None
