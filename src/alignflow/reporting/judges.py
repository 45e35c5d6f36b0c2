"""A judge's card as a person reads it: the same tables on a page and in the terminal."""

from dataclasses import dataclass
from functools import partial

from alignflow.evaluation.judges.card import JudgeCard, Transfer
from alignflow.reporting.charts import Dot, Tick
from alignflow.reporting.text import humanise, plural

_SIZE, _LEFT, _BOTTOM, _TOP = 220, 36.0, 196.0, 8.0

Table = tuple[str, list[tuple[str, str]]]
"""A title, and rows of a quantity and its value."""

_YES = {"toxicity": "toxic", "truth": "true", "information": "informative"}


@dataclass(frozen=True)
class ReliabilityPlot:
    """Share of positive texts over the probability that the judge gave them, in pixels."""

    size: int
    left: float
    bottom: float
    top: float
    right: float
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    path: str
    dots: list[Dot]


def reliability_plot(card: JudgeCard) -> ReliabilityPlot:
    """Place a dot for each tenth of probabilities; on the diagonal they are what they say."""
    right = _SIZE - 8.0

    def x(value: float) -> float:
        return round(_LEFT + value * (right - _LEFT), 1)

    def y(value: float) -> float:
        return round(_BOTTOM - value * (_BOTTOM - _TOP), 1)

    dots = [
        Dot(
            x(of.mean_probability),
            y(of.share_positive),
            f"{plural(of.num_examples, 'text')} at {_percent(of.mean_probability)}: "
            f"{_percent(of.share_positive)} are {_YES[card.task]}",
        )
        for of in card.measured.reliability
    ]
    marks = (0.0, 0.5, 1.0)
    return ReliabilityPlot(
        size=_SIZE,
        left=_LEFT,
        bottom=_BOTTOM,
        top=_TOP,
        right=right,
        x_ticks=[Tick(x(value), _percent(value)) for value in marks],
        y_ticks=[Tick(y(value), _percent(value)) for value in marks],
        path="M" + "L".join(f"{dot.x} {dot.y}" for dot in dots),
        dots=dots,
    )


def card_tables(card: JudgeCard) -> list[Table]:
    """Return all that a card says, in words."""
    measured, yes = card.measured, _YES[card.task]
    confusion = measured.confusion
    how = (
        "as it came, on texts that it may know"
        if card.num_folds is None
        else f"by cross-validation over {card.num_folds} folds"
    )
    folds = [("in each fold", ", ".join(f"{auc:.3f}" for auc in card.auc_by_fold or ()))]
    tables: list[Table] = [
        (
            f"Judge of {card.task}, {how}",
            [
                ("area under the ROC curve", f"{measured.auc:.3f}"),
                *(folds if card.auc_by_fold else ()),
                ("accuracy", _percent(measured.accuracy)),
                ("Brier score", f"{measured.brier:.3f}"),
                ("expected calibration error", f"{measured.ece:.3f}"),
            ],
        ),
        (
            f"Decisions at a probability of {card.threshold:g}",
            [
                (f"{yes}, and told so", str(confusion.true_positives)),
                (f"{yes}, but not told so", str(confusion.false_negatives)),
                (f"not {yes}, but told so", str(confusion.false_positives)),
                (f"not {yes}, and not told so", str(confusion.true_negatives)),
            ],
        ),
        ("Fitted on" if card.num_folds else "Tried on", _data_rows(card)),
    ]
    if measured.groups:
        rows = [
            _group_row(group, of.num_negative, of.false_positive_rate)
            for group, of in measured.groups.items()
        ]
        tables.append((f"False alarms: texts about a group that are not {yes}, but told so", rows))
    return tables + (_transfer_tables(card.transfer) if card.transfer else [])


def _data_rows(card: JudgeCard) -> list[tuple[str, str]]:
    count = partial("{:,}".format)
    rows = [
        (
            "texts",
            f"{count(card.num_examples)}, {count(card.num_positive)} of them {_YES[card.task]}",
        ),
        ("left out as repetitions", count(card.num_repeated)),
        ("left out as labelled both ways", count(card.num_contradictory)),
    ]
    if any(file.role == "references" for file in card.files):
        rows.append(("left out as reference answers", count(card.num_references)))
    if card.num_features is not None:
        rows += [("features", count(card.num_features)), ("seed", str(card.seed))]
    if card.language_model is not None:
        rows.append(("language model", f"{card.language_model.name}, {card.num_layers} layers"))
        rows += [(name, f"sha256 {digest}") for name, digest in card.language_model.files.items()]
    rows.append(("licence", card.licence))
    return rows + [(file.role, f"{file.name} sha256 {file.sha256}") for file in card.files]


def _transfer_tables(transfer: Transfer) -> list[Table]:
    functionalities = [
        (
            f"{humanise(name.rpartition('_')[0])} ({'' if of.is_hateful else 'not '}hateful)",
            f"{_percent(of.accuracy)} of {of.num_cases}",
        )
        for name, of in transfer.functionalities.items()
    ]
    groups = [
        _group_row(group, of.num_negative, of.false_positive_rate)
        for group, of in transfer.groups.items()
    ]
    overall = [
        ("area under the ROC curve", f"{transfer.auc:.3f}"),
        ("accuracy", _percent(transfer.accuracy)),
    ]
    return [
        ("On HateCheck, which it was not fitted on", overall),
        ("On HateCheck: decided rightly, by what is tested", functionalities),
        (
            "On HateCheck: false alarms, by whom a case mentions",
            groups,
        ),
    ]


def _group_row(group: str, num_negative: int, rate: float | None) -> tuple[str, str]:
    return group, "none" if rate is None else f"{_percent(rate)} of {num_negative}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share in (0, 0.5, 1) else f"{100 * share:.1f} %"
