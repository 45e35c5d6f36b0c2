"""Answers of the models, side by side."""

from alignflow.config import Config
from alignflow.reporting.model.fields import ModelRole, Text


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
