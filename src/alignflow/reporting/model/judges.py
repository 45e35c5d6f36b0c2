"""Who judged what the models wrote."""

from alignflow.config import Config
from alignflow.evaluation.judges.card import JudgeCard


class JudgeSummary(Config):
    """Who judged what the models wrote for a suite."""

    suite: str
    card: JudgeCard
    objection: str = ""
    """Why its scores can't gate, in one sentence; empty if they can."""
