"""The token audit: what each limit of a recipe would do to its rows, before anything is trained.

Here is what it is asked, what it finds and how that is judged; `alignflow.training.audit` counts.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from alignflow.config import Config
from alignflow.data_validation.config import (
    AttributeName,
    DataConfig,
    Rating,
    Severity,
    Share,
)
from alignflow.data_validation.leaks import SplitLeak
from alignflow.training.config import StageConfig, SteerLM2Config

AUDIT_FILE = "token_audit.json"
"""Name of the file in the artifact that holds a `TokenAudit`."""

AuditBound = Literal[
    "max_over_limit_share",
    "max_response_cut_share",
    "max_missing_end_share",
    "max_unlearnable_share",
]

_SEVERITIES: dict[AuditBound, Severity] = {
    "max_over_limit_share": "warning",
    "max_response_cut_share": "warning",
    "max_missing_end_share": "warning",
    "max_unlearnable_share": "critical",
}

ROW_FIELDS = frozenset({"stage", "max_length", "max_new_tokens", "loss", "margin_scale"})
"""Fields of a stage that decide what becomes of a row; the audit depends on no others."""


class TokenAuditConfig(Config):
    """How much of the rows the limits of the training stages may cost."""

    max_records: PositiveInt = 20_000
    """Most training records that are tokenised for a stage; of a larger set so many, evenly
    spread, and the report says so."""
    max_over_limit_share: Share = 0.2
    """Largest share of rows that are longer than the stage's limit."""
    max_response_cut_share: Share = 0.2
    """Largest share of rows of which a part that is to be learnt is cut."""
    max_missing_end_share: Share = 0.2
    """Largest share of rows whose last learnt token ends no turn: a model learns from them not to
    stop."""
    max_unlearnable_share: Share = 0.2
    """Largest share of records that training would leave out: nothing to learn is left of them,
    their prompt is too long, or the chat template can't hold them."""
    severities: dict[AuditBound, Severity] = {}
    """What a bound does that is not kept, where not by default: `critical` ends the run before a
    training job starts, `warning` is told. Only the last bound is critical by default."""


class AuditedStage(Config):
    """One training stage and the set that it would learn from."""

    config: StageConfig
    dataset: str
    """Name of the set in the recipe, or of the stage that makes it."""
    wanted: dict[AttributeName, Rating] | None = None
    """What SteerLM 2.0 asks for in its prompts, as the recipe has it for SteerLM."""

    @model_validator(mode="after")
    def _prompts_ask_for_something(self) -> Self:
        if isinstance(self.config, SteerLM2Config) != (self.wanted is not None):
            raise ValueError("wanted and the stage steerlm2 go together")
        return self


class TokenAuditJob(Config):
    """Config of `python -m alignflow.training.audit`."""

    model: Path
    """Hugging Face folder whose tokenizer and chat template are used."""
    datasets: dict[str, Path]
    """Dataset artifacts by name."""
    stages: Annotated[list[AuditedStage], Field(min_length=1)]
    max_records: PositiveInt


class StageTokens(Config):
    """What a stage would make of its training split, counted over the records looked at.

    A pair is one record and two rows. Tokens, percentiles and what is over the limit are of all
    rows that the template can hold; what is cut of a response, and ends without an end, is of
    rows that would be learnt from.
    """

    stage: str
    dataset: str
    limit: PositiveInt
    """Most tokens of a row, or of a prompt where a stage samples the answers."""
    num_records: NonNegativeInt
    """Records of the split."""
    num_audited: NonNegativeInt
    """Records looked at."""
    num_rows: NonNegativeInt
    num_tokens: NonNegativeInt
    percentiles: dict[str, int]
    """Tokens of a row: `p50`, `p90`, `p95`, `p99` and `max`; empty without rows."""
    num_over_limit: NonNegativeInt
    num_tokens_over: NonNegativeInt
    """Tokens past the limit, which no stage sees."""
    num_response_cut: NonNegativeInt
    num_missing_end: NonNegativeInt
    refused: dict[str, int]
    """Records that training would leave out, by reason code."""

    @property
    def num_without_loss(self) -> int:
        """Records of which the limit leaves nothing to learn."""
        return self.refused.get("response_cut_away", 0)

    def share(self, bound: AuditBound) -> float:
        """Return the share that a bound is about, from 0 to 1."""
        if bound == "max_unlearnable_share":
            return sum(self.refused.values()) / max(self.num_audited, 1)
        count = {
            "max_over_limit_share": self.num_over_limit,
            "max_response_cut_share": self.num_response_cut,
            "max_missing_end_share": self.num_missing_end,
        }[bound]
        return count / max(self.num_rows, 1)


class TokenAudit(Config):
    """Content of `token_audit.json`."""

    stages: list[StageTokens]
    leaks: list[SplitLeak] = []
    """Between the sets that the stages learn from."""


class BoundNotKept(NamedTuple):
    """A bound that a stage's rows don't keep."""

    severity: Severity
    place: str
    """The stage, or the set whose held-out rows leak."""
    sentence: str


def judge_audit(
    audit: TokenAudit, config: TokenAuditConfig, data: DataConfig
) -> list[BoundNotKept]:
    """Return the bounds that are not kept, critical ones first."""
    found = [
        BoundNotKept(data.leak_severity, leak.held_out_of, _leak_sentence(leak, data))
        for leak in audit.leaks
        if leak.share > data.max_leaked_share
    ]
    for tokens in audit.stages:
        for bound, default in _SEVERITIES.items():
            share, most = tokens.share(bound), getattr(config, bound)
            if share > most:
                found.append(
                    BoundNotKept(
                        config.severities.get(bound, default),
                        tokens.stage,
                        _sentence(tokens, bound, share, most),
                    )
                )
    return sorted(found, key=lambda item: item.severity)


def _leak_sentence(leak: SplitLeak, data: DataConfig) -> str:
    return (
        f"{leak.held_out_of}: {leak.num_leaked} of {leak.num_held_out} held-out rows have a prompt "
        f"that {leak.train_of} trains on, more than data.max_leaked_share "
        f"({data.max_leaked_share:.1%})"
    )


def _sentence(tokens: StageTokens, bound: AuditBound, share: float, most: float) -> str:
    what = {
        "max_over_limit_share": f"of the rows are longer than {tokens.limit} tokens",
        "max_response_cut_share": f"of the rows lose a part of their answer at {tokens.limit}",
        "max_missing_end_share": "of the rows would end without an end of turn",
        "max_unlearnable_share": f"of the records would be left out ({_reasons(tokens)})",
    }[bound]
    return (
        f"{tokens.stage} on {tokens.dataset}: {share:.1%} {what}, more than "
        f"token_audit.{bound} ({most:.1%})"
    )


def _reasons(tokens: StageTokens) -> str:
    counts = sorted(tokens.refused.items(), key=lambda item: -item[1])
    return ", ".join(f"{reason} {count}" for reason, count in counts)


def row_fields(stage: AuditedStage) -> dict[str, Any]:
    """Return what the audit of a stage depends on besides model and set."""
    return {
        "dataset": stage.dataset,
        **({} if stage.wanted is None else {"wanted": stage.wanted}),
        **stage.config.model_dump(mode="json", include=set(ROW_FIELDS)),
    }
