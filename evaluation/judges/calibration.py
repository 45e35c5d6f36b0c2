"""Log-odds and probabilities, and the scaling that makes them mean what they say."""

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def fit_platt(log_odds_N: Floats, labels_N: Bools) -> tuple[float, float]:
    """Return slope and offset that make log-odds calibrated (Platt 1999), by maximum likelihood."""
    model = LogisticRegression(C=1e6).fit(log_odds_N[:, None], labels_N)
    return float(model.coef_[0, 0]), float(model.intercept_[0])


def sigmoid(log_odds_N: Floats) -> Floats:
    """Return probabilities of log-odds."""
    probabilities_N: Floats = 1 / (1 + np.exp(-log_odds_N))
    return probabilities_N
