"""What the report page shows, as data: one frozen model that reads and writes JSON."""

import math
from collections.abc import Iterable, Mapping
from datetime import datetime
from graphlib import CycleError, TopologicalSorter
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, NonNegativeFloat, NonNegativeInt, model_validator

from alignflow.config import Config
from alignflow.evaluation.judges.card import JudgeCard

_MIN_ITEMS = 10
"""Fewer items tell too little even of their own spread."""


def _without_lone_surrogates(value: Any) -> Any:
    """Replace halves of surrogate pairs, which JSON may hold and UTF-8 can't, by U+FFFD."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return value


Text = Annotated[str, BeforeValidator(_without_lone_surrogates)]
"""Text that comes from data or from a model, any characters at all; escaped where it is shown."""

ModelRole = Literal["base", "sft", "champion", "aligned"]
"""The three models that a pipeline judges, and the one that serves now."""

ROLES: tuple[ModelRole, ...] = ("base", "sft", "champion", "aligned")
ROLE_LABELS: dict[ModelRole, str] = {
    "base": "base",
    "sft": "SFT",
    "champion": "champion",
    "aligned": "aligned",
}

MODEL_LABELS: dict[ModelRole, str] = {"base": "A", "aligned": "B"}
"""Of two models side by side, of which the second takes the part of the aligned one."""

Interval = tuple[float, float]
"""Bounds of a 95 % confidence interval, in the unit of the value."""


class RuleOutcome(Config):
    """What became of one rule of the gate."""

    name: str
    """Name of the rule in the recipe."""
    passed: bool
    reason: Text
    """One sentence with the numbers: why it passed or failed."""


class VerdictSummary(Config):
    """The decision of the gate."""

    passed: bool
    rules: list[RuleOutcome] = []
    """Every rule, in the order of the recipe; empty where the recipe has none."""


class Difference(Config):
    """What the aligned model scores above another, over the items that both were judged on."""

    value: float
    interval: Interval | None = None
    """None where it isn't known, such as with a single item."""
    num_items: NonNegativeInt


class GroupScores(Config):
    """One score within a group of items."""

    values: dict[ModelRole, float] = {}
    intervals: dict[ModelRole, Interval] = {}
    num_items: NonNegativeInt


class ScoreRow(Config):
    """One score of every model that was judged."""

    name: str
    """Name as in the recipe and in MLflow, such as `truthfulness/mc2`."""
    label: str
    """The name for a person, such as `Truthfulness, MC2`."""
    meaning: str = ""
    """One phrase that says what the number counts."""
    is_share: bool = False
    """Whether values lie in 0..1 and are shown as percentages, differences as points."""
    unit: str = ""
    """Unit of a value that is no share, such as `nats a token`."""
    higher_is_better: bool | None = None
    """Direction of the good; None where a difference is neither good nor bad."""
    values: dict[ModelRole, float] = {}
    """Score of each model that has one."""
    intervals: dict[ModelRole, Interval] = {}
    """Confidence interval of each value, where known."""
    differences: dict[ModelRole, Difference] = {}
    """How far the aligned model is above each other one."""
    num_items: NonNegativeInt | None = None
    """Items that were judged."""
    groups: dict[Text, GroupScores] = {}
    """The score within groups of items, such as the statements about one group of people."""

    @property
    def difference(self) -> float | None:
        """How far the aligned model is above the base model; None unless both have the score."""
        return self.differences["base"].value if "base" in self.differences else None

    @property
    def change(self) -> Literal["better", "worse", "same", "neutral", "unclear"] | None:
        """What the difference from the base model means.

        `unclear` is a difference whose interval holds 0 or isn't known, or over too few items to
        know one; `neutral` is one of a score without a direction, None one that can't be formed.
        """
        if "base" not in self.differences:
            return None
        difference = self.differences["base"]
        if difference.value == 0:
            return "same"
        if self.higher_is_better is None:
            return "neutral"
        interval = difference.interval
        if difference.num_items < _MIN_ITEMS or interval is None or interval[0] <= 0 <= interval[1]:
            return "unclear"
        return "better" if (difference.value > 0) == self.higher_is_better else "worse"


class WinRate(Config):
    """How often the aligned model's answers beat another's to the same prompts, by their reward."""

    against: ModelRole
    num_prompts: NonNegativeInt
    rate: float
    """Share of wins, a tie counting one half."""
    interval: Interval | None = None
    ties: float
    """Share of ties."""
    length_controlled: float | None = None
    """The share that would be were both models' answers equally long; None where all differ
    alike in length."""
    length_controlled_interval: Interval | None = None
    tokens: float
    """Mean length of the aligned model's answers."""
    other_tokens: float
    """Mean length of the other's."""


class Distribution(Config):
    """How the values of the items spread that one score is the mean of."""

    title: str
    unit: str = ""
    label: str = ""
    """Whose values these are, where not those of the models that were judged."""
    edges: Annotated[list[float], Field(min_length=2)]
    """Bounds of the bins, rising, one more than bins."""
    counts: dict[ModelRole, list[NonNegativeInt]]
    """Items in each bin, of every model that has any."""
    means: dict[ModelRole, float]

    @model_validator(mode="after")
    def _bins_hold_items(self) -> Self:
        for role, counts in self.counts.items():
            if len(counts) != len(self.edges) - 1 or not sum(counts):
                raise ValueError(f"counts.{role} must be {len(self.edges) - 1} and not all 0")
        return self


class WorstItem(Config):
    """An item of a benchmark that the aligned model does badly on."""

    suite: str
    """Label of its suite's score, such as `Truthfulness, MC2`."""
    text: Text
    """The item, such as a question or a statement; hateful or false as it may be."""
    said: Text = ""
    """What the aligned model holds of it."""
    value: float
    """What the item scores, 0..1."""
    base_value: float | None = None
    """What it scores for the base model."""


class CurvePoint(Config):
    """What was measured at one optimizer step; None is not measured there."""

    step: NonNegativeInt
    loss: float | None = None
    """Training loss of the step's global batch."""
    held_out_loss: float | None = None
    accuracy: float | None = None
    """Share of the step's pairs in which the chosen response wins, 0..1."""
    held_out_accuracy: float | None = None
    grad_norm: float | None = None
    """Global gradient norm before clipping."""
    learning_rate: float | None = None
    reward: float | None = None
    """Mean reward of the rollout's responses."""
    held_out_reward: float | None = None
    kl_nats: float | None = None
    """Mean divergence of a response from the initial policy, summed over its tokens."""
    response_tokens: float | None = None
    """Mean length of a response."""


class TrainingCurve(Config):
    """The course of one training stage."""

    stage: str
    """Name of the stage, such as `sft`."""
    points: list[CurvePoint] = []
    """In the order of their steps, each step once."""

    @classmethod
    def from_metrics(cls, stage: str, lines: Iterable[Mapping[str, Any]]) -> Self:
        """Build the curve from the lines of a job's `metrics.jsonl`.

        Lines of one step are merged, and where a resumed job repeats a step the later line
        counts. Values that are not finite numbers are left out.
        """
        quantities = set(CurvePoint.model_fields) - {"step"}
        by_step: dict[int, dict[str, float]] = {}
        for line in lines:
            step = line.get("step")
            if not isinstance(step, int) or step < 0:
                continue
            for quantity in quantities:
                value = line.get(f"{stage}/{quantity}")
                if isinstance(value, int | float) and math.isfinite(value):
                    by_step.setdefault(step, {})[quantity] = value
        points = [CurvePoint(step=step, **by_step[step]) for step in sorted(by_step)]
        return cls(stage=stage, points=points)


class RefusedRecord(Config):
    """One record that a training stage could not learn from."""

    id: Text
    reason: Text


class TrainingRows(Config):
    """What became of the rows of one training stage once they were tokens."""

    stage: str
    """Name of the stage, such as `sft`."""
    num_rows: NonNegativeInt
    """Rows trained on; a pair is two."""
    num_truncated: NonNegativeInt
    """Rows, held out ones too, that were longer than the limit and cut at the end."""
    num_refused: NonNegativeInt
    """Records that were left out."""
    refused: list[RefusedRecord] = []
    """The first of them."""


class TokenRow(Config):
    """What the token audit found for one training stage."""

    stage: str
    dataset: str
    """Name of the set in the recipe."""
    limit: NonNegativeInt
    num_records: NonNegativeInt
    num_audited: NonNegativeInt
    """Records that were looked at; fewer than there are in a large set."""
    num_rows: NonNegativeInt
    """A pair is one record and two rows."""
    num_tokens: NonNegativeInt
    percentiles: dict[str, NonNegativeInt] = {}
    """Tokens of a row: `p50`, `p90`, `p95`, `p99` and `max`."""
    num_over_limit: NonNegativeInt
    num_tokens_over: NonNegativeInt
    num_response_cut: NonNegativeInt
    num_missing_end: NonNegativeInt
    refused: dict[str, NonNegativeInt] = {}
    """Records that training leaves out, by reason code."""
    notes: list[Text] = []
    """Bounds of the recipe that are not kept."""


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


class LineageNode(Config):
    """One thing that the model came from or was judged by."""

    id: str
    kind: str
    """Artifact kind (`model`, `dataset`, `benchmark`, `sft`, …) or `registry`."""
    label: Text
    """A short name; about 16 characters fit the picture."""
    digest: str = ""
    """Content digest; empty for what is no artifact."""
    detail: Text = ""
    """A few words more, such as `288 rows` or `version 3`."""


class LineageEdge(Config):
    """One thing that was made from another."""

    source: str
    """Id of the parent."""
    target: str
    """Id of the child."""
    role: str = ""
    """What the parent was to the child, such as `reference`."""


class Lineage(Config):
    """Where the model came from, as a directed graph without cycles."""

    nodes: list[LineageNode] = []
    edges: list[LineageEdge] = []

    @model_validator(mode="after")
    def _is_a_graph_without_cycles(self) -> Self:
        known = {node.id for node in self.nodes}
        if len(known) != len(self.nodes):
            raise ValueError("two lineage nodes have the same id")
        children: dict[str, list[str]] = {}
        for edge in self.edges:
            if not {edge.source, edge.target} <= known:
                raise ValueError(f"edge {edge.source} -> {edge.target} names an unknown node")
            children.setdefault(edge.source, []).append(edge.target)
        try:
            TopologicalSorter(children).prepare()
        except CycleError as error:
            raise ValueError(f"the lineage has a cycle: {error.args[1]}") from None
        return self


class StageRecord(Config):
    """One stage of the run: whether it was computed, how long it took, how much it moved."""

    name: str
    status: Literal["computed", "reused"]
    """Reused stages were taken from the store."""
    seconds: NonNegativeFloat
    """Wall-clock time, in this run or, of a reused stage, in the one that computed it."""
    num_processes: NonNegativeInt = 1
    """Processes (on GPUs: devices) of the stage's job; what a price counts."""
    tokens: NonNegativeInt | None = None
    """Tokens that went through the model, all processes together."""
    tokens_per_s: NonNegativeFloat | None = None
    peak_memory_bytes: NonNegativeInt | None = None
    """Largest memory of one process."""

    @property
    def process_hours(self) -> float:
        """Hours times processes."""
        return self.seconds * self.num_processes / 3600


class JudgeSummary(Config):
    """Who judged what the models wrote for a suite."""

    suite: str
    card: JudgeCard
    objection: str = ""
    """Why its scores can't gate, in one sentence; empty if they can."""


class Message(Config):
    """One turn of a conversation."""

    role: Text
    content: Text


class Answer(Config):
    """What one model answered."""

    text: Text
    reward: float | None = None
    """Score by the reward model, in standard deviations of its reference set."""


class Sample(Config):
    """One held-out prompt and the answers of the models, side by side."""

    prompt: list[Message]
    answers: dict[ModelRole, Answer]


class Links(Config):
    """Where the rest of the run can be found; None where there is none."""

    prefect_run: str | None = None
    """URL of the flow run's page."""
    mlflow_run: str | None = None
    """URL of the parent run's page."""
    model_version: str | None = None
    """The registered version in words, such as `demo version 3 (candidate)`; None if refused."""
    model_version_url: str | None = None
    export: str | None = None
    """Folder or URL of the Hugging Face export."""
    store: str | None = None
    """URL of the artifact store."""


class ModelComparison(Config):
    """Two models side by side, as the base (A) and the aligned model (B) of a run."""

    first: Text
    """What was asked for as A."""
    second: Text
    made_at: datetime
    scores: list[ScoreRow]
    win_rates: list[WinRate] = []
    distributions: list[Distribution] = []
    num_truncated: dict[str, NonNegativeInt] = {}
    """Sequences of B, by suite, that were cut at the evaluation's length limit."""
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
    kl_nats_per_token: float | None = None
    """Divergence of the aligned model from its parent."""
    distributions: list[Distribution] = []
    worst_items: list[WorstItem] = []
    num_truncated: dict[str, NonNegativeInt] = {}
    """Sequences of each suite that were cut at the evaluation's length limit."""
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
