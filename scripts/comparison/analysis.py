"""What a comparison says: normalised scores, aggregates against frames, and tables of the last windows."""

from __future__ import annotations

import csv
import dataclasses
import warnings
from itertools import combinations
from pathlib import Path

import numpy as np

from agents import evaluation
from agents.environments import task_name
from agents.errors import ConfigError
from comparison import statistics
from comparison.alignment import TABLE_WINDOWS, Comparison
from comparison.run import name_of

THRESHOLDS = 101  # of performance profiles
NORMALISE = ("human", "behaviour")


@dataclasses.dataclass(frozen=True)
class Analysis:
    """The numbers behind all figures; every dict is by group.

    Attributes:
      comparison: what was compared.
      unit: what a score is.
      games: those that are aggregated.
      last: scores of each run in the table, the mean of the last windows [R], and its games [R].
      curves: aggregate -> [3, T], value with lower and upper end of the interval, against frames.
      table: aggregate -> [3], of the last windows.
      thresholds: of the profiles [K].
      profiles: [3, K].
      improvement: (x, y) -> [3], the probability that x beats y on all games, by returns; each pair once.
      per_game: game -> [3, T], mean return over seeds with its interval, raw.
    """

    comparison: Comparison
    unit: str
    games: list[str]
    last: dict[str, tuple[np.ndarray, np.ndarray]]
    curves: dict[str, dict[str, np.ndarray]]
    table: dict[str, dict[str, np.ndarray]]
    thresholds: np.ndarray
    profiles: dict[str, np.ndarray]
    improvement: dict[tuple[str, str], np.ndarray]
    per_game: dict[str, dict[str, np.ndarray]]


def read_scores(path) -> tuple[str, dict[str, tuple[float, float]]]:
    """Reads scores to normalise by: CSV with the columns game, random, and one for what counts as 1.

    Returns:
      The name of that third column, and game -> (random, its value). A human's are added to the shipped ones, any
      others stand alone, so that no aggregate mixes the two.

    Raises:
      ConfigError: if it is not one.
    """
    try:
        with Path(path).open(encoding="utf-8-sig") as file:
            rows = csv.DictReader(line for line in file if not line.startswith("#"))
            columns = rows.fieldnames or []
            if len(columns) != 3 or not {"game", "random"} < {*columns}:
                raise ValueError(f"its columns are {', '.join(columns) or 'none'}")
            [reference] = {*columns} - {"game", "random"}
            table = {task_name(row["game"]): (float(row["random"]), float(row[reference])) for row in rows}
        if not table:
            raise ValueError("no rows")
        if not all(np.isfinite(pair).all() and pair[0] != pair[1] for pair in table.values()):
            raise ValueError(f"random and {reference} must be different finite numbers")
        return name_of(reference), (evaluation.scores() if reference == "human" else {}) | table
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise ConfigError(
            f"--scores: {path} is no CSV table with the columns game, random, human or another in its place ({error})."
        ) from error


def behaviour_scores(comparison: Comparison, scores) -> tuple[dict[str, tuple[float, float]], dict[str, str]]:
    """Game -> (return of random play, of the data set), and of the games that have no such pair why not."""
    found: dict[str, set] = {}
    for group in comparison.groups:
        for run in group.runs:
            found.setdefault(run.game, set()).add(run.behaviour_return)
    pairs, why = {}, {}
    for game, returns in found.items():
        one = next(iter(returns))
        if len(returns) > 1:
            why[game] = "there are several data sets: --normalise human"
        elif one is None:
            why[game] = "its data set was converted and does not tell: --normalise human"
        elif game not in scores:
            why[game] = "the return of random play is unknown: a table with --scores"
        elif one <= scores[game][0]:
            why[game] = "its data set plays no better than at random"
        else:
            pairs[game] = (scores[game][0], one)
    return pairs, why


def _references(comparison: Comparison, scores, normalise: str | None) -> tuple[str, dict, str]:
    """What a score is, game -> (return that counts as 0, as 1), and a note on games that have none."""
    if normalise == "behaviour" and comparison.unit != "updates":
        raise ConfigError(
            "--normalise behaviour is by the returns of data sets, from which these runs have not learned."
        )
    reference, scores = ("human", evaluation.scores()) if scores is None else scores
    why: dict[str, str] = {}
    if (normalise or ("behaviour" if comparison.unit == "updates" else "human")) == "behaviour":
        scores, why = behaviour_scores(comparison, scores)
        reference = "behaviour"
    without = [game for game in comparison.games if game not in scores]
    named = ", ".join(f"{game} ({why[game]})" if game in why else game for game in without)
    unit, note = f"{reference}-normalised score", ""
    if without and len(comparison.games) == 1:
        unit, scores = "return", {without[0]: (0.0, 1.0)}
        note = f"No {reference} score of {named}: returns are raw, and there is no optimality gap."
    elif without:
        note = f"No {reference} score, so not in the aggregates: {named}."
        note += " Pass a table of them, with the columns game, random, human (or another): --scores." if not why else ""
    return unit, scores, note


def analyse(comparison: Comparison, scores=None, resamples: int = 2_000, normalise: str | None = None) -> Analysis:
    """Computes everything that is shown.

    Args:
      comparison: the groups.
      scores: from `read_scores`; None takes the human ones of agents/atari_scores.csv.
      resamples: of the bootstrap.
      normalise: by the score of a 'human' (or what `scores` has in its place), or by the 'behaviour' return of the
        data set; None takes that of offline runs.
    """
    unit, scores, note = _references(comparison, scores, normalise)
    games = [game for game in comparison.games if game in scores]
    if note:
        comparison.notes.append(note)

    last, curves = {}, {}
    for group in comparison.groups if games else ():
        chosen = np.isin(group.games, games)
        names = group.games[chosen]
        random, one = np.array([scores[name] for name in names]).T
        normalised = (group.scores[chosen] - random[:, None]) / (one - random)[:, None]
        last[group.name] = _last(normalised, names)
        curves[group.name] = statistics.aggregate(normalised, names, resamples)
    table = {
        name: {key: value[:, 0] for key, value in statistics.aggregate(one[:, None], names, resamples).items()}
        for name, (one, names) in last.items()
    }
    if unit == "return":
        for aggregates in (*curves.values(), *table.values()):
            del aggregates["optimality_gap"]
    # From nearly the lowest score to where nine tenths of the best group's runs are.
    quantile = lambda q: [np.quantile(of, q) for of, _ in last.values()] or [0.0]
    thresholds = np.linspace(min(0.0, *quantile(0.02)), max(1e-3, *quantile(0.9)), THRESHOLDS)
    finals = {group.name: _last(group.scores, group.games) for group in comparison.groups}
    return Analysis(
        comparison=comparison,
        unit=unit,
        games=games,
        last=last,
        curves=curves,
        table=table,
        thresholds=thresholds,
        profiles={name: statistics.profile(*of, thresholds, resamples) for name, of in last.items()},
        improvement={
            (x, y): statistics.probability_of_improvement(*finals[x], *finals[y], resamples)
            for x, y in combinations(finals, 2)
        },
        per_game={group.name: _per_game(group, comparison.games, resamples) for group in comparison.groups},
    )


def _last(scores: np.ndarray, games: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean of each run in the last windows [R], and its game [R]; runs without a return there are left out."""
    with warnings.catch_warnings(action="ignore", category=RuntimeWarning):
        final = np.nanmean(scores[:, -TABLE_WINDOWS:], axis=1)
    return final[~np.isnan(final)], games[~np.isnan(final)]


def _per_game(group, games, resamples) -> dict[str, np.ndarray]:
    """Mean return of each game over seeds, with its interval: game -> [3, T]."""
    result = {}
    for game in games:
        of_game = group.scores[group.games == game]  # [seeds, T]
        drawn = statistics.draws(np.zeros(len(of_game)), resamples, np.random.default_rng(0))
        there = ~np.isnan(of_game)
        with np.errstate(invalid="ignore"):  # a sample may hold none of the runs that have a return
            samples = (drawn @ np.where(there, of_game, 0)) / (drawn @ there)
        result[game] = np.stack([np.nanmean(of_game, axis=0), *statistics.interval(samples)])
    return result
