"""The page as a whole."""

from datetime import datetime
from typing import Annotated

from pydantic import Field, NonNegativeFloat, NonNegativeInt

from alignflow.config import Config
from alignflow.reporting.model.data import DatasetSummary, LeakRow
from alignflow.reporting.model.fields import Text
from alignflow.reporting.model.judges import AnswerJudgeSummary, JudgeSummary
from alignflow.reporting.model.lineage import Lineage
from alignflow.reporting.model.links import Links
from alignflow.reporting.model.samples import Sample
from alignflow.reporting.model.scores import Distribution, ScoreRow, WinRate, WorstItem
from alignflow.reporting.model.stages import StageRecord
from alignflow.reporting.model.training import TokenRow, TrainingCurve, TrainingRows
from alignflow.reporting.model.verdict import VerdictSummary


class ModelComparison(Config):
    """Two models side by side, as the base (A) and the aligned model (B) of a run."""

    first: Text
    """What was asked for as A."""
    second: Text
    made_at: datetime
    scores: list[ScoreRow]
    win_rates: list[WinRate] = []
    answer_judge: None = None
    """No job compares the answers of two models that are evaluated already."""
    distributions: list[Distribution] = []
    num_truncated: dict[str, NonNegativeInt] = {}
    """Sequences of B, by suite, that were cut at the evaluation's length limit."""
    num_left_out: dict[str, NonNegativeInt] = {}
    """Items that could not be judged, by suite."""
    kl_nats_per_token: None = None
    """Neither is the other's parent, as far as is known."""


class ReportData(Config):
    """All that the report page of one run shows."""

    pipeline: str
    """Name of the pipeline in the recipe."""
    run_id: str
    finished_at: datetime
    seconds: NonNegativeFloat
    """Wall-clock time of the whole run."""
    recipe: Text
    """The resolved recipe as YAML."""
    verdict: VerdictSummary
    scores: list[ScoreRow] = []
    win_rates: list[WinRate] = []
    answer_judge: AnswerJudgeSummary | None = None
    kl_nats_per_token: float | None = None
    """Divergence of the aligned model from its parent."""
    distributions: list[Distribution] = []
    worst_items: list[WorstItem] = []
    num_truncated: dict[str, NonNegativeInt] = {}
    """Sequences of each suite that were cut at the evaluation's length limit."""
    num_left_out: dict[str, NonNegativeInt] = {}
    """Items that could not be judged, by suite."""
    judges: list[JudgeSummary] = []
    curves: list[TrainingCurve] = []
    token_rows: list[TokenRow] = []
    leak_rows: list[LeakRow] = []
    training_rows: list[TrainingRows] = []
    datasets: list[DatasetSummary] = []
    lineage: Lineage = Lineage()
    stages: list[StageRecord] = []
    samples: list[Sample] = []
    links: Links = Links()
    versions: dict[str, str] = {}
    """Version of each program that took part, by name."""
    machine: str = ""
    """The machine in words, such as `2 CPU cores, 8 GB, no GPU`."""
    price_per_process_hour: Annotated[float, Field(ge=0)] | None = None
    """Price of one process (device) for an hour; None leaves costs out."""
    currency: str = "USD"
