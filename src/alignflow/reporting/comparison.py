"""Ways of aligning one model side by side: what each gained, and what it cost."""

import statistics
from collections.abc import Sequence
from datetime import datetime

from pydantic import NonNegativeFloat, NonNegativeInt

from alignflow.config import Config
from alignflow.reporting.model import Text
from alignflow.reporting.scores import ScoreWords, format_score, score_words
from alignflow.reporting.text import format_bytes, format_seconds, stage_name

_NONE = "\N{EN DASH}"


class TrialResult(Config):
    """One model that a method made with one seed."""

    seed: NonNegativeInt
    scores: dict[str, float | None]
    """By `suite/score`."""
    seconds: NonNegativeFloat
    """Time of what the method needs beyond the SFT model, each stage once."""
    peak_memory_bytes: NonNegativeInt | None = None
    """The most that a process of these stages held."""
    num_models: NonNegativeInt = 1
    """Most models that one process held at once."""


class MethodTrials(Config):
    """What a method came to over its seeds."""

    method: str
    trials: list[TrialResult]


class Comparison(Config):
    """Everything that the page of a comparison shows."""

    pipeline: str
    run_id: str
    finished_at: datetime
    before: dict[str, dict[str, float | None]]
    """Scores of the base and the SFT model."""
    methods: list[MethodTrials]
    machine: str
    versions: dict[str, str]
    recipe: Text


class Row(Config):
    """One quantity over the columns of the table."""

    label: str
    meaning: str
    cells: list[str]


def columns(data: Comparison) -> list[str]:
    """Return the heads of the table's columns."""
    return [*(stage_name(name) for name in (*data.before, *(m.method for m in data.methods)))]


def rows(data: Comparison) -> list[Row]:
    """Return the table: scores as mean and spread over the seeds, then costs."""
    names = dict.fromkeys(
        name
        for scores in (*data.before.values(), *(t.scores for m in data.methods for t in m.trials))
        for name in scores
    )
    return [*(_score(data, name) for name in names), *_costs(data)]


def _score(data: Comparison, name: str) -> Row:
    words = score_words(name)
    before = [format_score(words, scores.get(name)) for scores in data.before.values()]
    after = []
    for method in data.methods:
        found = [trial.scores.get(name) for trial in method.trials]
        values = [value for value in found if value is not None]
        after.append(_mean_and_spread(words, values))
    better = {True: "higher is better", False: "lower is better", None: ""}
    unit = f"in {words.unit}" if words.unit else ""
    parts = (words.meaning, unit, better[words.higher_is_better])
    meaning = "; ".join(part for part in parts if part)
    return Row(label=words.label, meaning=meaning, cells=[*before, *after])


def _mean_and_spread(words: ScoreWords, values: Sequence[float]) -> str:
    """Return the mean over seeds and, of several, the standard deviation of one."""
    if not values:
        return format_score(words, None)
    mean = format_score(words, statistics.fmean(values))
    if len(values) == 1:
        return mean
    number, unit, _ = mean.partition(" %")
    spread = format_score(words, statistics.stdev(values)).removesuffix(" %")
    return f"{number} \N{PLUS-MINUS SIGN} {spread}{unit}"


def _costs(data: Comparison) -> list[Row]:
    time, memory, models = [], [], []
    for method in data.methods:
        time.append(format_seconds(statistics.fmean(trial.seconds for trial in method.trials)))
        peaks = [t.peak_memory_bytes for t in method.trials if t.peak_memory_bytes is not None]
        memory.append(format_bytes(max(peaks)) if peaks else _NONE)
        models.append(str(max(trial.num_models for trial in method.trials)))
    return [
        _cost(data, "Time", "of what the method needs beyond the SFT model", time),
        _cost(data, "Peak memory", "of one process in these stages", memory),
        _cost(data, "Models in memory", "of one process, at once", models),
    ]


def _cost(data: Comparison, label: str, meaning: str, cells: Sequence[str]) -> Row:
    return Row(label=label, meaning=meaning, cells=[*([_NONE] * len(data.before)), *cells])


def as_markdown(data: Comparison) -> str:
    """Return the table in Markdown."""
    heads = ["", *columns(data)]
    lines = [f"| {' | '.join(heads)} |", f"|---|{'---:|' * (len(heads) - 1)}"]
    lines += [f"| {row.label} | {' | '.join(row.cells)} |" for row in rows(data)]
    return "\n".join(lines)
