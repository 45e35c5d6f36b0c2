"""Who judged what the models wrote."""

from pydantic import NonNegativeInt

from alignflow.config import Config
from alignflow.evaluation.judges.card import JudgeCard
from alignflow.reporting.model.fields import Interval, Text
from alignflow.reporting.model.scores import WinRate


class JudgeSummary(Config):
    """Who judged what the models wrote for a suite."""

    suite: str
    card: JudgeCard
    objection: str = ""
    """Why its scores can't gate, in one sentence; empty if they can."""


class AnswerJudgeSummary(Config):
    """The language model that compared answers, and whose it preferred."""

    name: Text
    """As the recipe names it."""
    num_pairs: NonNegativeInt
    """Held-out pairs that it was measured on."""
    accuracy: float | None
    """How rightly it decided them, 0.5 by chance; None without a pair."""
    accuracy_interval: Interval | None = None
    consistency: float | None
    """Share of them of which it preferred the same answer in both orders."""
    consistency_interval: Interval | None = None
    num_left_out: NonNegativeInt = 0
    """Comparisons that were too long for it, or that its chat template can't hold."""
    objection: str = ""
    """Why its win rates can't gate, in one sentence; empty if they can."""
    win_rates: list[WinRate] = []
