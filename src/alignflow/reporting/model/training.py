"""The course of the training, and what became of its rows."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, Self

from pydantic import NonNegativeInt

from alignflow.config import Config
from alignflow.reporting.model.fields import Text


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
