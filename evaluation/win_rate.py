"""How often one model's answers beat another's, by who judges them, and what length does to it.

A reward model scores each answer by itself; a judge of answers has compared them two by two.

A longer answer may win for its length alone. The length-controlled rate is what a logistic
regression of the outcome on the difference in length predicts where both answers are equally long.
It is that of length-controlled AlpacaEval (arXiv:2404.04475) without the term for how hard each
prompt is, which takes the outcomes of many models.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from alignflow.evaluation.bootstrap import Estimate, Floats
from alignflow.evaluation.measures import Items, Measure

_PRIOR_STD = 5.0
"""Of both coefficients, in logits: wide enough to leave any rate below 99 % as it is."""
_MAX_STEPS = 50
_CONVERGED = 1e-9

JUDGED_WIN_RATES = ("judged_win_rate", "length_controlled_judged_win_rate")
"""What rates by the judge of answers are called; those by the reward model lack the `judged`."""


@dataclass(frozen=True)
class Answers:
    """One model's answers to prompts, as the reward model and a ruler see them."""

    items: Items
    """The prompts."""
    rewards_N: Floats
    num_tokens_N: Floats

    @classmethod
    def of_measures(cls, measures: Mapping[str, Measure]) -> "Answers | None":
        """Return those that have a reward, from the measures of an evaluation, if there are any."""
        rewards, lengths = measures.get("samples/mean_reward"), measures.get("samples/mean_tokens")
        if rewards is None or lengths is None or not rewards.items.ids:
            return None
        return cls(rewards.items, rewards.columns_NC[:, 0], _values_at(rewards.items, lengths))


def _values_at(items: Items, measure: Measure) -> Floats:
    """Return the values of a mean at some of its items."""
    value_of = dict(zip(measure.items.ids, measure.columns_NC[:, 0], strict=True))
    return np.array([value_of[name] for name in items.ids])


@dataclass(frozen=True)
class Duel:
    """The answers of two models to the same prompts."""

    items: Items
    """The prompts that both answered."""
    outcomes_N: Floats
    """1 for a win of the first model, 1/2 for a tie, 0 for a loss."""
    lengths_N2: Floats
    """Tokens of the first model's answer and of the other's."""

    @classmethod
    def between(cls, first: Answers, other: Answers, *, tie_margin: float) -> "Duel":
        """Match the answers of two models by their prompts.

        Args:
            first: The answers that win or lose.
            other: What they are up against.
            tie_margin: Answers whose rewards differ by no more are even.
        """
        row_of = {name: row for row, name in enumerate(other.items.ids)}
        here = [row for row, name in enumerate(first.items.ids) if name in row_of]
        there = [row_of[first.items.ids[row]] for row in here]
        margins_N = first.rewards_N[here] - other.rewards_N[there]
        return cls(
            items=first.items.chosen(here),
            outcomes_N=np.where(np.abs(margins_N) <= tie_margin, 0.5, margins_N > 0),
            lengths_N2=np.stack([first.num_tokens_N[here], other.num_tokens_N[there]], axis=1),
        )

    @classmethod
    def judged(cls, outcomes: Measure, lengths: Measure, other_lengths: Measure) -> "Duel":
        """Take what a judge of answers decided.

        Args:
            outcomes: As in `win_rate`.
            lengths: Tokens of the first model's answers, to these prompts and perhaps others.
            other_lengths: The same of the other model's.
        """
        items = outcomes.items
        both = [_values_at(items, each) for each in (lengths, other_lengths)]
        return cls(items, outcomes.columns_NC[:, 0], np.stack(both, axis=1))

    @property
    def ties(self) -> float:
        """Share of ties; NaN without a prompt."""
        return Measure.mean(self.items, self.outcomes_N == 0.5).value

    def win_rate(self) -> Measure:
        """Return the share of wins, a tie counting one half."""
        return Measure.mean(self.items, self.outcomes_N, is_share=True)

    def length_controlled(self) -> "LengthControlledRate":
        """Return the share of wins that would be were all answers as long as each other."""
        return LengthControlledRate(self.items, self.outcomes_N, np.subtract(*self.lengths_N2.T))


@dataclass(frozen=True)
class LengthControlledRate:
    """A win rate that length has no part in."""

    items: Items
    outcomes_N: Floats
    differences_N: Floats
    """Tokens of the first model's answer less those of the other's."""

    @property
    def value(self) -> float:
        """The rate; NaN without a prompt."""
        return self.estimate().value

    def estimate(self) -> Estimate:
        """Return the rate with what its confidence bounds come from."""
        # One column an item, 1 at its source: from how often sources count to how often items do.
        counts_of_KN = self.items.source_sums(np.eye(len(self.items.ids))).clip(max=1)

        def score(counts: Floats) -> Floats:
            return length_controlled_rate(
                self.outcomes_N, self.differences_N, counts @ counts_of_KN
            )

        return Estimate(score, len(counts_of_KN), (0.0, 1.0))


def duels(models: Mapping[str, Mapping[str, Measure]], *, tie_margin: float) -> dict[str, Duel]:
    """Return the aligned model's duel with each other that answered the same prompts.

    Args:
        models: Measures by model, `aligned` among them.
        tie_margin: See `Duel.between`.
    """
    answers = {name: Answers.of_measures(measures) for name, measures in models.items()}
    aligned = answers.pop("aligned")
    found = {
        name: Duel.between(aligned, other, tie_margin=tie_margin)
        for name, other in answers.items()
        if aligned is not None and other is not None
    }
    return {name: duel for name, duel in found.items() if duel.items.ids}


def judged_duels(
    models: Mapping[str, Mapping[str, Measure]], judged: Mapping[str, Measure]
) -> dict[str, Duel]:
    """Return the aligned model's duels that a judge of answers has decided.

    Args:
        models: Measures by model, `aligned` among them.
        judged: The measures of the judge's job.
    """
    outcomes = {name: judged.get(f"judged_win_rate/{name}") for name in models}
    lengths = {name: measures.get("samples/mean_tokens") for name, measures in models.items()}
    aligned = lengths["aligned"]
    return {
        name: Duel.judged(outcome, aligned, other)
        for name, outcome in outcomes.items()
        if outcome is not None and aligned is not None and (other := lengths[name]) is not None
    }


def win_rates(
    of_duels: Mapping[str, Duel],
    names: tuple[str, str] = ("win_rate", "length_controlled_win_rate"),
) -> dict[str, Measure | LengthControlledRate]:
    """Return the rates of duels as gate rules name them: `win_rate/sft` and the like."""
    rate, length_controlled = names
    rates: dict[str, Measure | LengthControlledRate] = {}
    for name, duel in of_duels.items():
        rates[f"{rate}/{name}"] = duel.win_rate()
        rates[f"{length_controlled}/{name}"] = duel.length_controlled()
    return rates


def length_controlled_rate(outcomes_N: Floats, differences_N: Floats, weights: Floats) -> Floats:
    """Return the win rate that a logistic regression predicts for answers of equal length.

    The logit of a win is intercept + slope * tanh(difference / its standard deviation), as in
    arXiv:2404.04475; both coefficients have a normal prior of standard deviation 5, without which
    a model that never loses has no finite fit. Newton's method, for many weightings at once.

    Args:
        outcomes_N: 1 for a win, 1/2 for a tie, 0 for a loss.
        differences_N: How much longer the first model's answer is, in tokens.
        weights: [..., N] how often each prompt counts.

    Returns:
        [...] rates between 0 and 1; NaN where nothing counts, or where all differ alike.
    """
    if not differences_N.any():
        length_N = np.zeros(len(differences_N))
    elif spread := float(differences_N.std()):
        length_N = np.tanh(differences_N / spread)
    else:  # always longer by as much: what that does can't be told from what the model does
        length_N = np.full(len(differences_N), np.nan)
    features_N2 = np.stack([np.ones_like(length_N), length_N], axis=1)
    products_N4 = (features_N2[:, :, None] * features_N2[:, None, :]).reshape(-1, 4)
    prior = np.eye(2) / _PRIOR_STD**2
    coefficients = np.zeros((*weights.shape[:-1], 2))
    for _ in range(_MAX_STEPS):
        wins = 1 / (1 + np.exp(-coefficients @ features_N2.T))
        gradient = (weights * (outcomes_N - wins)) @ features_N2 - coefficients @ prior
        curvature = (weights * wins * (1 - wins)) @ products_N4
        hessian = curvature.reshape(*weights.shape[:-1], 2, 2) + prior
        step = np.linalg.solve(hessian, gradient[..., None])[..., 0]
        coefficients += step
        if np.abs(step).max(initial=0.0) < _CONVERGED:
            break
    rates = 1 / (1 + np.exp(-coefficients[..., 0]))
    return np.where(weights.sum(axis=-1) > 0, rates, np.nan)
