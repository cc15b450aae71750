"""Aggregates over games and seeds with bootstrap intervals: Agarwal et al. 2021, "Deep Reinforcement Learning at the
Edge of the Statistical Precipice" (https://arxiv.org/abs/2108.13264).

Scores are arrays [R] or [R, T] of R runs: those of one game stand together, `games` [R] says which game each is of.
Games may have different numbers of runs; each run counts the same in the first and the last aggregate, each game in the
others.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import trim_mean

CONFIDENCE = 0.95


def _starts(games):
    """Where each game begins [G]."""
    return np.flatnonzero(np.r_[True, games[1:] != games[:-1]])


def per_game(scores, games):
    """Means over the runs of each game: [..., R] -> [..., G]."""
    starts = _starts(games)
    return np.add.reduceat(scores, starts, axis=-1) / np.diff(np.r_[starts, len(games)])


# Each aggregates [..., R] to [...].
AGGREGATES = {
    # The mean of the middle half of all runs.
    "iqm": lambda scores, games: trim_mean(scores, 0.25, axis=-1),
    "mean": lambda scores, games: per_game(scores, games).mean(axis=-1),
    "median": lambda scores, games: np.median(per_game(scores, games), axis=-1),
    # How far the runs fall short of a human's score, or whatever is 1, those above it counting as 1.
    "optimality_gap": lambda scores, games: 1 - np.minimum(scores, 1).mean(axis=-1),
}


def resample(games, resamples: int, random: np.random.Generator):
    """Draws, for each game, as many of its runs as it has, with replacement: indices [resamples, R] (stratified)."""
    starts = _starts(games)
    sizes = np.diff(np.r_[starts, len(games)])
    return np.repeat(starts, sizes) + random.integers(np.repeat(sizes, sizes), size=(resamples, len(games)))


def draws(games, resamples: int, random: np.random.Generator):
    """How often `resample` draws each run: [resamples, R]."""
    index = resample(games, resamples, random) + len(games) * np.arange(resamples)[:, None]
    return np.bincount(index.ravel(), minlength=index.size).reshape(index.shape)


def interval(samples, axis=0):
    """Lower and upper end of the percentile interval of bootstrap samples, NaN apart: [2, ...]."""
    quantile = np.nanquantile if np.isnan(samples).any() else np.quantile  # the first takes ten times as long
    return quantile(samples, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=axis)


def aggregate(scores, games, resamples: int = 2_000) -> dict[str, np.ndarray]:
    """Computes every aggregate with its interval.

    Args:
      scores: [R, T], normalised; a NaN leaves the run out at this t, where its game must have another.
      games: [R], runs of a game together.
      resamples: of the bootstrap; the same runs are drawn for all T.

    Returns:
      name -> [3, T]: value, lower and upper end.
    """
    index = resample(games, resamples, np.random.default_rng(0))
    result = {name: np.empty((3, scores.shape[1])) for name in AGGREGATES}
    for t, column in enumerate(scores.T):
        there, of, drawn = ~np.isnan(column), games, index
        if not there.all():
            column, of = column[there], games[there]
            drawn = resample(of, resamples, np.random.default_rng(0))
        samples = column[drawn]
        for name, function in AGGREGATES.items():
            result[name][:, t] = function(column, of), *interval(function(samples, of))
    return result


def profile(scores, games, thresholds, resamples: int = 2_000) -> np.ndarray:
    """The fraction of runs with a score above each threshold [K], with its interval: [3, K]."""
    above = (scores[:, None] > thresholds).astype(np.float64)
    drawn = draws(games, resamples, np.random.default_rng(0))
    return np.stack([above.mean(axis=0), *interval(drawn @ above / len(scores))])


def probability_of_improvement(x, games_x, y, games_y, resamples: int = 2_000) -> np.ndarray:
    """How probably a run of x has a higher score than one of y on the same game, averaged over games; ties count half.

    Args:
      x, y: scores [R], [R'].
      games_x, games_y: their games, the same set in the same order.
      resamples: of the bootstrap.

    Returns:
      [3]: value, lower and upper end.
    """
    random = np.random.default_rng(0)
    drawn_x, drawn_y = draws(games_x, resamples, random), draws(games_y, resamples, random)
    values, samples = [], []
    for game in dict.fromkeys(games_x):
        of_x, of_y = np.flatnonzero(games_x == game), np.flatnonzero(games_y == game)
        wins = (np.sign(x[of_x][:, None] - y[of_y]) + 1) / 2  # [n, m]
        values.append(wins.mean())
        samples.append(np.einsum("rn,nm,rm->r", drawn_x[:, of_x], wins, drawn_y[:, of_y], optimize=True) / wins.size)
    return np.array([np.mean(values), *interval(np.mean(samples, axis=0))])
