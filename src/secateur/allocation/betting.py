"""Tests of the mean of bounded differences that hold at any sample size."""

import numpy as np

from secateur.types import Floats


def betting_p_value(damage: Floats, limit: float, tolerance: float, alpha: float) -> float:
    """P-value of "the mean damage is at least `tolerance`" for damages in [-limit, limit].

    Capital grows when damages are small; by Ville's inequality it exceeds 1/p with probability at most
    p if the hypothesis holds, whatever the sample size.

    Source: Waudby-Smith & Ramdas 2020, arXiv:2010.09686 (predictable plug-in bets).

    Args:
        damage: in the order in which the samples are read.
        limit: largest possible damage.
        tolerance: in (0, limit).
        alpha: the bets are tuned to this level; validity does not depend on it.

    >>> betting_p_value(np.zeros(1), 1.0, 0.5, 0.05)  # one bet of 0.75 / (1 - 0.75), on 0.5 against 0.75: 1 + 3/4
    0.5714285714285714
    """
    return float(min(1.0, np.exp(-max(log_capital(damage, limit, tolerance, alpha).max(), 0.0))))


def log_capital(damage: Floats, limit: float, tolerance: float, alpha: float) -> Floats:
    """Logarithm of the capital after each sample, from 1 at first; see `betting_p_value`."""
    values = (np.asarray(damage) + limit) / (2 * limit)
    mean = (tolerance + limit) / (2 * limit)
    count = np.arange(1, len(values) + 1)
    running = (0.5 + np.cumsum(values)) / (count + 1)
    spread = (0.25 + np.cumsum((values - running) ** 2)) / (count + 1)
    # A bet may depend on earlier samples only.
    before = np.concatenate([[0.25], spread[:-1]])
    bets = np.minimum(largest_bet(limit, tolerance), np.sqrt(2 * np.log(1 / alpha) / (len(values) * before)))
    return np.asarray(np.cumsum(np.log1p(-bets * (values - mean))))


def largest_bet(limit: float, tolerance: float) -> float:
    """Three quarters of the bet that the worst damage would ruin, for damages scaled to [0, 1].

    >>> largest_bet(1.0, 0.5)
    3.0
    """
    return 0.75 / (1 - (tolerance + limit) / (2 * limit))
