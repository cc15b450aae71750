"""Evaluation: the returns of a policy over whole episodes, and how they compare to a human's."""

from __future__ import annotations

import contextlib
import csv
from functools import cache, partial
from pathlib import Path

import numpy as np

from agents.actor import Actor

EVALUATION = 1  # tells the seeds of evaluations from those of training
SCORES = Path(__file__).with_name("atari_scores.csv")


def evaluate(environment, act, params, episodes: int, epsilon: float, entropy=(0,), stop=lambda: False) -> np.ndarray:
    """Plays whole episodes in games of their own.

    Every game plays a number of episodes fixed in advance: counting whichever end first would favour short ones.

    Args:
      environment: a specification.
      act: compiled function `act(params, observation, key, epsilon, noise) -> actions`; called without noise.
      params: parameters.
      episodes: number of episodes.
      epsilon: exploration rate.
      entropy: integers that seed games and exploration.
      stop: called after every step; evaluation ends early when it returns true.

    Returns:
      The raw returns [episodes], fewer if it was stopped.

    Raises:
      GameError: if a game fails.
    """
    num_envs = min(episodes, 16)
    actor = Actor(environment, num_envs, partial(act, noise=False), *entropy, EVALUATION)
    left = np.full(num_envs, episodes // num_envs) + (np.arange(num_envs) < episodes % num_envs)
    returns = []
    with contextlib.closing(actor):
        actor.reset()
        while left.any() and not stop():
            actor.send(params, epsilon)
            _, finished = actor.recv()
            for episode in finished:
                if left[episode.game]:
                    left[episode.game] -= 1
                    returns.append(episode.episode_return)
    return np.array(returns)


@cache
def scores() -> dict[str, tuple[float, float]]:
    """Random and human score per game, by CamelCase name; the file states their source."""
    with SCORES.open() as file:
        rows = csv.DictReader(line for line in file if not line.startswith("#"))
        return {row["game"]: (float(row["random"]), float(row["human"])) for row in rows}


def behaviour_normalised(game: str, score, behaviour: float | None):
    """(score - random) / (behaviour - random), by the mean return of a data set; None unless that is above random."""
    if game not in scores() or behaviour is None or behaviour <= scores()[game][0]:
        return None
    return (score - scores()[game][0]) / (behaviour - scores()[game][0])


def human_normalised(game: str, score):
    """(score - random) / (human - random); None for games without a human score."""
    if game not in scores():
        return None
    random, human = scores()[game]
    return (score - random) / (human - random)
