"""The data sets: what went in and what was refused."""

from typing import Literal

from pydantic import NonNegativeInt

from alignflow.config import Config
from alignflow.reporting.model.fields import Text


class LeakRow(Config):
    """Held-out rows of one set whose prompt stands in a training split."""

    held_out_of: str
    train_of: str
    num_held_out: NonNegativeInt
    num_leaked: NonNegativeInt


class ReasonCount(Config):
    """How many rows were refused for one reason."""

    code: str
    """Reason code, such as `identical_pair`."""
    count: NonNegativeInt
    meaning: str = ""
    """The reason in plain words; empty shows the code as words."""


class RefusedRow(Config):
    """One refused row, shown as an example."""

    file: Text
    line: NonNegativeInt
    """Line or record number, 1-based; 0 where the whole file is meant."""
    reason: str
    """Reason code."""
    message: Text = ""
    """What is wrong with this row, in one sentence."""
    text: Text = ""
    """The row as it stood in the file, cut at a length that the caller chose."""


class ExpectationOutcome(Config):
    """What became of one expectation of the set as a whole."""

    name: Text
    """The expectation in words."""
    severity: Literal["critical", "warning", "info"] = "critical"
    passed: bool
    observed: Text = ""
    """The value that was found."""


class DataSource(Config):
    """One source that a data set was read from."""

    uri: Text
    sha256: str
    """SHA-256 of its bytes, lower-case hex."""
    num_bytes: NonNegativeInt | None = None


class DatasetSummary(Config):
    """One data set: what went in and what was refused."""

    name: str
    """Name in the recipe, such as `preferences`."""
    kind: str
    """`sft`, `preference`, `unpaired` or `steerlm`."""
    num_read: NonNegativeInt
    num_accepted: NonNegativeInt
    num_refused: NonNegativeInt
    num_skipped: NonNegativeInt = 0
    """Blank lines, and rows beyond a limit of the recipe."""
    num_train: NonNegativeInt
    num_held_out: NonNegativeInt
    reasons: list[ReasonCount] = []
    flags: list[ReasonCount] = []
    """Notes on accepted rows, by code."""
    examples: list[RefusedRow] = []
    expectations: list[ExpectationOutcome] = []
    sources: list[DataSource] = []
    ratings: dict[Text, list[NonNegativeInt]] = {}
    """Accepted rows with each rating from 0 to 4, by attribute."""
    scripts: dict[str, NonNegativeInt] = {}
    """Rows of a sample by the script of most letters of their response."""
    licence: Text | None = None
    digest: str = ""
    parents: dict[str, str] = {}
    """Digests of the benchmarks whose items it must not hold, by role."""
    data_docs: str | None = None
    """Path or URL of the Data Docs page; a relative path is read from the report's folder."""
