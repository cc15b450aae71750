"""The actor: N games that are stepped while the learner computes."""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np

from agents import environments
from agents.games import Games
from replay.ring import TimeStep

_fold_in = jax.jit(jax.random.fold_in)


class Episode(NamedTuple):
    """A finished episode."""

    episode_return: float  # sum of raw rewards
    length: int  # agent steps
    game: int  # which of the N


class Actor:
    """Owns N games, the observation of each, and the statistics of their episodes.

    Args:
      environment: a specification, `environments.Atari` or `Gymnasium`.
      num_envs: N.
      act: compiled function `act(params, observation [N, stack, ...], key, epsilon) -> actions [N]`.
      entropy: integers from which the games' seeds and the exploration are derived.
      reseed_every_steps: agent steps between new seeds of the games, see `Games`.
    """

    def __init__(self, environment, num_envs: int, act, *entropy: int, reseed_every_steps: int | None = None):
        self.games = Games(environment, num_envs, entropy, reseed_every_steps)
        self._act = act
        self._key = jax.random.key(environments.seeds(num_envs + 1, *entropy)[-1])
        self._returns = np.zeros(num_envs, np.float64)
        self._lengths = np.zeros(num_envs, np.int64)

    def reset(self) -> TimeStep:
        """Starts all games anew; returns their first step."""
        self._observation = self.games.reset()
        self._returns[:], self._lengths[:] = 0, 0
        n = len(self._returns)
        self._actions = np.zeros(n, np.int32)
        return TimeStep(
            self._actions, np.zeros(n, np.float32), np.zeros(n, bool), np.ones(n, bool), self._observation[:, -1]
        )

    def send(self, params, epsilon: float) -> None:
        """Chooses actions for the current observations and sets the games going."""
        key = _fold_in(self._key, self.games.count)
        # A copy: the games log it, and a view would keep kilobytes of a device's array alive.
        self._actions = np.array(self._act(params, self._observation, key, np.float32(epsilon)))
        self.games.send(self._actions)

    def recv(self) -> tuple[TimeStep, list[Episode]]:
        """Waits for the games; returns what they gave and the episodes that ended."""
        first = self.games.over  # these use this step to reset
        self._observation, reward, terminated, truncated = self.games.recv()
        self._returns = np.where(first, 0.0, self._returns + reward)
        self._lengths = np.where(first, 0, self._lengths + 1)
        episodes = [
            Episode(float(self._returns[game]), int(self._lengths[game]), int(game))
            for game in np.flatnonzero(self.games.over)
        ]
        step = TimeStep(self._actions, reward.astype(np.float32), terminated, first, self._observation[:, -1])
        return step, episodes

    def save(self) -> dict:
        """What `restore` needs: a tree of arrays."""
        own = {"returns": self._returns, "lengths": self._lengths, "observation": self._observation}
        return {**own, "games": self.games.save()}

    def restore(self, saved: dict) -> bool:
        """Goes on where `save` was called; returns whether the games could be brought there.

        They cannot if they depend on more than seeds and actions: `reset` is to be called then.
        """
        self._returns, self._lengths = saved["returns"].copy(), saved["lengths"].copy()
        self._observation = saved["observation"]
        return self.games.restore(saved["games"], self._observation)

    def close(self) -> None:
        """Closes the games."""
        self.games.close()
